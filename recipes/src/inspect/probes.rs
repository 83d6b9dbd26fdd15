//! Probes: what each observer says of each target.

use std::collections::BTreeMap;

use serde::Serialize;

use super::look::{Look, by_name};
use crate::error::Result;
use crate::keys::KeySpace;
use crate::probe::{self, Opinion, ProbeState};

/// A target that observers speak of.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ProbeInfo {
    /// Its name.
    pub target: String,
    /// What each observer says that lives, by whom and since when, in the order of their names.
    pub opinions: Vec<Opinion>,
    /// Observers whose keys cannot be read, and why: they count for nobody.
    pub unreadable: BTreeMap<String, String>,
}

impl ProbeInfo {
    /// What whoever asks for so many observers to agree is told.
    #[must_use]
    pub fn verdict(&self, quorum: usize) -> ProbeState {
        probe::judge(&self.opinions, quorum)
    }
}

/// All targets.
pub(super) async fn probes(look: &Look) -> Result<Vec<ProbeInfo>> {
    let kvs = look.list_kind(probe::KIND).await?;
    let each = by_name(probe::KIND, kvs).into_iter().map(|(target, keys)| {
        let space = KeySpace::of(probe::KIND, &target);
        let mut info = ProbeInfo {
            target,
            opinions: Vec::new(),
            unreadable: BTreeMap::new(),
        };
        for (rest, kv) in keys {
            match probe::opinion(&space, &kv) {
                Some(Ok(opinion)) => info.opinions.push(opinion),
                Some(Err(error)) => drop(info.unreadable.insert(rest, error.to_string())),
                None => {}
            }
        }
        info
    });
    Ok(each.collect())
}
