//! Following a setting or a group: the value that holds for this instance, kept up to date in the
//! background.

use std::fmt;
use std::future::IntoFuture;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;

use super::acknowledge;
use super::publish::Publisher;
use super::rule::Instance;
use super::snapshot::{Owner, Snapshot};
use super::tracker::{Scope, Tracker, Validate};
use super::view::View;
use crate::error::Result;
use crate::follow::Followed;
use crate::session::Session;
use crate::snapshot::PATIENCE;
use crate::tasks::Tasks;

/// Starts a [`Following`] when awaited.
#[must_use = "awaiting the builder starts to follow"]
pub struct Follow<T> {
    publisher: Publisher,
    scope: Scope,
    instance: Instance,
    validate: Option<Validate<T>>,
    snapshot: Option<PathBuf>,
    session: Option<Session>,
}

impl<T> Follow<T> {
    pub(super) fn new(publisher: Publisher, scope: Scope) -> Self {
        let who = publisher.client.identity();
        let id = match who.label.is_empty() {
            true => format!("{}-{}", who.host, who.pid),
            false => who.label.clone(),
        };
        Self {
            publisher,
            scope,
            instance: Instance {
                id,
                ..Instance::default()
            },
            validate: None,
            snapshot: None,
            session: None,
        }
    }

    /// The name of this instance, by which gray releases select and under which it acknowledges. Give it one
    /// that lasts: a new id is judged anew. Default: the client's label, else the host and the process id.
    pub fn instance(mut self, id: impl Into<String>) -> Self {
        self.instance.id = id.into();
        self
    }

    /// A label of this instance, for the rules of gray releases.
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.instance.labels.insert(name.into(), value.into());
        self
    }

    /// Checks each value before it is applied. One that fails, or makes the check panic, is rejected, and the
    /// last good one stays. The check holds everything up while it runs, so it must be quick.
    pub fn validate(
        mut self,
        check: impl Fn(&T) -> std::result::Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.validate = Some(Arc::new(check));
        self
    }

    /// A file to start from when the store does not answer within a second; it is written after each change.
    /// Its folder must be there. One follower a file.
    pub fn snapshot(mut self, path: impl Into<PathBuf>) -> Self {
        self.snapshot = Some(path.into());
        self
    }

    /// Tells others what this instance runs, under this session until it is closed; when it is lost otherwise,
    /// under new ones.
    pub fn acknowledge(mut self, session: &Session) -> Self {
        self.session = Some(session.clone());
        self
    }
}

impl<T> Follow<T>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    async fn start(self) -> Result<Following<T>> {
        let Self {
            publisher, scope, ..
        } = self;
        let (client, layout) = (publisher.client, publisher.layout);
        layout.check(match &scope {
            Scope::Key(key) => key,
            Scope::Namespace => "any",
        })?;
        if let Some(session) = &self.session {
            session.belongs_to(&client)?;
        }
        let acknowledged = layout.acknowledgement(scope.acknowledged_as(), &self.instance.id);
        let range = scope.range(&layout);
        let owner = Owner {
            namespace: layout.namespace.clone(),
            key: match &scope {
                Scope::Key(key) => Some(key.clone()),
                Scope::Namespace => None,
            },
        };
        let mut tracker = Tracker::new(
            layout,
            scope,
            self.instance,
            self.validate,
            publisher.memory,
        );
        let snapshot = self.snapshot.map(|path| Snapshot::new(path, owner));
        let mut loaded = false;
        if let Some(snapshot) = &snapshot
            && let Some(saved) = snapshot.load().await?
        {
            match tracker.begin_with(saved.value, saved.parts) {
                Ok(()) => loaded = true,
                Err(reason) => {
                    tracing::warn!("the value of a snapshot cannot be used");
                    tracing::debug!(reason, "why it cannot be used");
                }
            }
        }
        let mut followed = Followed::begin(&client, range, tracker);
        let answered = followed.wait_for(|view| view.answered);
        if loaded {
            match tokio::time::timeout(PATIENCE, answered).await {
                Ok(answered) => drop(answered?),
                Err(_) => tracing::warn!("no answer of the store; starting from the snapshot"),
            }
        } else {
            answered.await?;
        }
        if let Some(snapshot) = snapshot {
            let keeping = snapshot.keep(client, followed.views());
            Tasks::current().spawn("snapshot", keeping);
        }
        if let Some(session) = &self.session {
            acknowledge::start(session, acknowledged, followed.views())?;
        }
        let seen = followed.view();
        Ok(Following { followed, seen })
    }
}

impl<T> IntoFuture for Follow<T>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    type Output = Result<Following<T>>;
    type IntoFuture = BoxFuture<'static, Result<Following<T>>>;

    /// Ready once the store has said what is published, or after a second with what the snapshot has.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a name that is none, a session of another store, and a
    /// snapshot file that is something else; the store's final refusals. Trouble with the store is waited
    /// out.
    ///
    /// # Cancel safety
    /// Dropping the future starts nothing.
    fn into_future(self) -> Self::IntoFuture {
        self.start().boxed()
    }
}

impl<T> fmt::Debug for Follow<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follow")
            .field("namespace", &self.publisher.layout.namespace)
            .field("scope", &self.scope)
            .field("instance", &self.instance)
            .field("snapshot", &self.snapshot)
            .finish_non_exhaustive()
    }
}

/// What this instance is to use of a setting or a group, with one watch. It only changes to what was
/// published later, as a whole, and skips what came between. While the store is out of reach the last value
/// stays, marked as stale; what cannot be used is rejected, and the last good value stays too.
///
/// Clones share the view; each waits for changes by itself. Dropping the last stops following, and removes the
/// acknowledgement.
pub struct Following<T> {
    followed: Followed<View<T>>,
    /// What was waited for last.
    seen: Arc<View<T>>,
}

impl<T: Send + Sync + 'static> Following<T> {
    /// The view now.
    #[must_use]
    pub fn borrow(&self) -> Arc<View<T>> {
        self.followed.view()
    }

    /// Waits for a view that differs from the one that was waited for last, and returns it.
    ///
    /// # Errors
    /// The store's final refusal that ended the following.
    ///
    /// # Cancel safety
    /// No view is missed when the future is dropped; intermediate ones may be skipped.
    pub async fn changed(&mut self) -> Result<Arc<View<T>>> {
        loop {
            let view = self.followed.changed().await?;
            if !self.seen.is_as(&view) {
                self.seen = Arc::clone(&view);
                return Ok(view);
            }
        }
    }

    /// Waits until a view satisfies `enough`, which may be the one now, and returns it.
    ///
    /// # Errors
    /// As [`Following::changed`].
    ///
    /// # Cancel safety
    /// As [`Following::changed`].
    pub async fn wait_for(&mut self, enough: impl FnMut(&View<T>) -> bool) -> Result<Arc<View<T>>> {
        let view = self.followed.wait_for(enough).await?;
        self.seen = Arc::clone(&view);
        Ok(view)
    }
}

impl<T> Clone for Following<T> {
    fn clone(&self) -> Self {
        Self {
            followed: self.followed.clone(),
            seen: Arc::clone(&self.seen),
        }
    }
}

impl<T: Send + Sync + 'static> fmt::Debug for Following<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Following").field(&self.borrow()).finish()
    }
}
