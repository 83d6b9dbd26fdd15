//! The memory of a failed write: what makes an engine refuse all later ones.

use std::sync::OnceLock;

use super::KvError;

/// The first failure of an engine's writes, if there was one.
#[derive(Debug, Default)]
pub(super) struct Poison {
    first: OnceLock<KvError>,
}

impl Poison {
    /// Whether writes are still taken.
    pub(super) fn check(&self) -> Result<(), KvError> {
        match self.first.get() {
            Some(first) => Err(KvError::Poisoned(Box::new(first.clone()))),
            None => Ok(()),
        }
    }

    /// Runs a write unless an earlier one failed, and remembers its failure.
    pub(super) fn guard(&self, write: impl FnOnce() -> Result<(), KvError>) -> Result<(), KvError> {
        self.check()?;
        write().inspect_err(|error| {
            // A concurrent failure may have come first; either tells the same story.
            if self.first.set(error.clone()).is_ok() {
                tracing::error!(%error, "key-value store failed, it takes no more writes");
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_after_a_failure_gets_it() {
        let poison = Poison::default();
        assert!(poison.guard(|| Ok(())).is_ok());
        let failure = KvError::Engine {
            cause: "sync failed".to_owned(),
        };
        assert!(poison.guard(|| Err(failure)).is_err());

        let mut ran = false;
        let later = poison.guard(|| {
            ran = true;
            Ok(())
        });
        assert!(!ran, "a poisoned engine must not write");
        let text = later.unwrap_err().to_string();
        assert!(text.contains("sync failed"), "{text}");
    }
}
