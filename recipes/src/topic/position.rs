//! Places in a topic: where a message stands, and where a reader begins.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::keys::Revision;
use crate::kit;

/// A place in the log of one partition: a message's, or one between two messages. The order of places is the
/// order of the commits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) segment: u64,
    /// The revision at which the message was committed.
    pub(super) created: Revision,
    /// Of the message in its segment; empty: before all messages of the revision.
    pub(super) name: String,
}

impl Place {
    /// Before everything in a segment.
    pub(super) fn start_of(segment: u64) -> Self {
        Self::behind(segment, Revision(-1))
    }

    /// Behind everything that was committed up to this revision, in this segment or before.
    pub(super) fn behind(segment: u64, revision: Revision) -> Self {
        Self {
            segment,
            created: Revision(revision.0.saturating_add(1)),
            name: String::new(),
        }
    }

    pub(super) fn of(position: &kit::Position) -> Self {
        Self {
            segment: position.segment(),
            created: position.created(),
            name: position.id().name().to_owned(),
        }
    }
}

/// Where a message stands in its topic. Two of the same partition are ordered as their commits were; those of
/// different partitions are not ordered.
///
/// Its text form, `<partition>/<segment>/<name>@<revision>`, can be kept elsewhere and read again, to go on from
/// there with [`Start::After`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Position {
    pub(super) partition: u32,
    pub(super) place: Place,
}

impl Position {
    pub(super) fn new(partition: u32, place: Place) -> Self {
        Self { partition, place }
    }

    /// The number of the partition.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// The number of the segment in the partition's log.
    #[must_use]
    pub fn segment(&self) -> u64 {
        self.place.segment
    }

    /// The revision at which the message was committed.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.place.created
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let same = self.partition == other.partition;
        same.then(|| self.place.cmp(&other.place))
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partition, place) = (self.partition, &self.place);
        let (segment, name, created) = (place.segment, &place.name, place.created);
        write!(f, "{partition}/{segment:016x}/{name}@{created}")
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let read = |text: &str| {
            let (partition, rest) = text.split_once('/')?;
            let (segment, rest) = rest.split_once('/')?;
            let (name, created) = rest.split_once('@')?;
            let place = Place {
                segment: u64::from_str_radix(segment, 16).ok()?,
                created: Revision(created.parse().ok()?),
                name: name.to_owned(),
            };
            Some(Self::new(partition.parse().ok()?, place))
        };
        // What is written back differently is nothing that was written so.
        let position = read(text).filter(|position| position.to_string() == text);
        position.ok_or_else(|| Error::Invalid(format!("not a position: {text:?}")))
    }
}

/// Where a reader begins, in every partition.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With what is published from now on.
    Latest,
    /// With the oldest message that there still is.
    Earliest,
    /// Behind this message; in other partitions with what was committed after it.
    After(Position),
    /// With what was committed after this revision.
    AfterRevision(Revision),
    /// With the first message of each partition that was published at this time or later, by the wall clocks
    /// of the publishers; as far as those agree.
    Since(SystemTime),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_read_as_they_are_written() {
        let place = Place {
            segment: 0x1f,
            created: Revision(1234),
            name: "00ab.0003".to_owned(),
        };
        let position = Position::new(3, place);
        let text = position.to_string();
        assert_eq!(text, "3/000000000000001f/00ab.0003@1234");
        assert_eq!(text.parse::<Position>().unwrap(), position);
        let boundary = Position::new(0, Place::start_of(2));
        assert_eq!(boundary.to_string().parse::<Position>().unwrap(), boundary);
        for text in [
            "",
            "3/1f/00ab.0003@1234",
            "03/000000000000001f/x@1",
            "3/000000000000001f/x",
            "3/000000000000001F/x@1",
            "3/000000000000001f/x@+1",
        ] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_order_is_that_of_the_commits_of_one_partition() {
        let at =
            |partition, text: &str| -> Position { format!("{partition}/{text}").parse().unwrap() };
        let (first, second) = (
            at(0, "0000000000000001/ff@5"),
            at(0, "0000000000000001/00@6"),
        );
        assert!(first < second, "not by name");
        assert!(second < at(0, "0000000000000002/00@7"));
        assert_eq!(first.partial_cmp(&at(1, "0000000000000001/00@6")), None);
        assert!(Place::behind(1, Revision(5)) > first.place);
        assert!(Place::behind(1, Revision(5)) < second.place);
    }
}
