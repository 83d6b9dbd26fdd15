//! The error catalogue: every cause a client can be told, with etcd's gRPC code and exact text,
//! since clients match on both. The only place that knows gRPC codes; used by every layer that
//! refuses a request and by clients that read refusals.

#[cfg(test)]
mod tests;

use std::fmt;

use tonic::{Code, Status};

use crate::kind::Kind;

/// Declares [`Reason`] and its tables from one list: `Variant = (code, kind, text)`.
macro_rules! catalogue {
    ($($(#[$doc:meta])* $name:ident = ($code:ident, $kind:ident, $text:literal),)*) => {
        /// The exact cause of an error.
        ///
        /// Texts that begin with `quorate:` are this project's own; all others are etcd's.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The gRPC code it is told with.
            #[must_use]
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// The text it is told with; no two reasons share one.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What its receiver should do.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind,)* }
            }
        }
    };
}

catalogue! {
    // Requests on the key space.

    /// An empty key.
    EmptyKey = (InvalidArgument, Invalid, "etcdserver: key is not provided"),
    /// A put that keeps value or lease of an absent key, or a transaction operation that is none.
    KeyNotFound = (InvalidArgument, NotFound, "etcdserver: key not found"),
    /// A put with both a value and `ignore_value`.
    ValueProvided = (InvalidArgument, Invalid, "etcdserver: value is provided"),
    /// A put with both a lease and `ignore_lease`.
    LeaseProvided = (InvalidArgument, Invalid, "etcdserver: lease is provided"),
    /// More than the allowed compares, or operations in one branch.
    TooManyOps = (InvalidArgument, Invalid, "etcdserver: too many operations in txn request"),
    /// One transaction branch changes a key twice.
    DuplicateKey = (InvalidArgument, Invalid, "etcdserver: duplicate key given in txn request"),
    /// Client API version metadata that is not UTF-8.
    InvalidClientApiVersion = (InvalidArgument, Invalid, "etcdserver: invalid client api version"),
    /// A sort order or target outside the enums.
    InvalidSortOption = (InvalidArgument, Invalid, "etcdserver: invalid sort option"),
    /// The encoded request exceeds the limit.
    RequestTooLarge = (InvalidArgument, Invalid, "etcdserver: request is too large"),
    /// The revision asked for is below the compact revision.
    Compacted = (OutOfRange, Compacted, "etcdserver: mvcc: required revision has been compacted"),
    /// The revision asked for is above the current one.
    FutureRevision = (OutOfRange, Future, "etcdserver: mvcc: required revision is a future revision"),
    /// The storage quota is used up.
    NoSpace = (ResourceExhausted, Exhausted, "etcdserver: mvcc: database space exceeded"),
    /// Too much waits to be applied.
    TooManyRequests = (ResourceExhausted, Exhausted, "etcdserver: too many requests"),
    /// A streamed range with a sort order other than by key ascending.
    RangeStreamSorted = (Unimplemented, Unimplemented, "RangeStream does not support custom sort orders"),
    /// A streamed range with bounds on revisions.
    RangeStreamFiltered = (Unimplemented, Unimplemented, "RangeStream does not support revision filters"),

    // Leases.

    /// No such lease.
    LeaseNotFound = (NotFound, NotFound, "etcdserver: requested lease not found"),
    /// The wished lease id is taken.
    LeaseExists = (FailedPrecondition, Conflict, "etcdserver: lease already exists"),
    /// A time to live above the limit.
    LeaseTtlTooLarge = (OutOfRange, Invalid, "etcdserver: too large lease TTL"),

    // Watches. The second and third are told as cancel reasons, not as statuses.

    /// The server ended the watch stream; watch again from the last revision seen.
    WatchCanceled = (Cancelled, Unavailable, "etcdserver: watch canceled"),
    /// The wished watch id is in use on the stream.
    WatchIdInUse = (Unknown, Conflict, "mvcc: duplicate watch ID provided on the WatchStream"),
    /// A watch on a range that holds no key.
    WatchRangeEmpty = (Unknown, Invalid, "mvcc: watcher range is empty"),

    // Membership.

    /// Another member has the id, or the URLs it is derived from.
    MemberExists = (FailedPrecondition, Conflict, "etcdserver: member ID already exist"),
    /// Another member has the peer URLs.
    PeerUrlExists = (FailedPrecondition, Conflict, "etcdserver: Peer URLs already exists"),
    /// The change would leave too few started members for a quorum.
    NotEnoughStartedMembers = (FailedPrecondition, Conflict, "etcdserver: re-configuration failed due to not enough started members"),
    /// No peer URLs, or bad ones.
    MemberBadUrls = (InvalidArgument, Invalid, "etcdserver: given member URLs are invalid"),
    /// No such member.
    MemberNotFound = (NotFound, NotFound, "etcdserver: member not found"),
    /// The member to promote is a voter already.
    MemberNotLearner = (FailedPrecondition, Conflict, "etcdserver: can only promote a learner member"),
    /// The learner to promote is too far behind.
    LearnerNotReady = (FailedPrecondition, Conflict, "etcdserver: can only promote a learner member which is in sync with leader"),
    /// The cluster has as many learners as it may.
    TooManyLearners = (FailedPrecondition, Conflict, "etcdserver: too many learner members in cluster"),
    /// The request speaks of another cluster.
    ClusterIdMismatch = (FailedPrecondition, Conflict, "etcdserver: cluster ID mismatch"),
    /// A learner was asked for what only voters serve; ask another member.
    NotSupportedForLearner = (FailedPrecondition, Unavailable, "etcdserver: rpc not supported for learner"),
    /// The member to hand leadership to is unknown or cannot lead.
    BadLeaderTransferee = (FailedPrecondition, Conflict, "etcdserver: bad leader transferee"),

    // Authentication and authorization.

    /// Authentication needs a user `root`.
    RootUserNotExist = (FailedPrecondition, Conflict, "etcdserver: root user does not exist"),
    /// Authentication needs `root` to have the role `root`.
    RootRoleNotExist = (FailedPrecondition, Conflict, "etcdserver: root user does not have root role"),
    /// The user exists.
    UserExists = (FailedPrecondition, Conflict, "etcdserver: user name already exists"),
    /// No user name; also told to a caller without a token while authentication is on.
    UserEmpty = (InvalidArgument, Invalid, "etcdserver: user name is empty"),
    /// No such user.
    UserNotFound = (FailedPrecondition, NotFound, "etcdserver: user name not found"),
    /// The role exists.
    RoleExists = (FailedPrecondition, Conflict, "etcdserver: role name already exists"),
    /// No such role.
    RoleNotFound = (FailedPrecondition, NotFound, "etcdserver: role name not found"),
    /// No role name.
    RoleEmpty = (InvalidArgument, Invalid, "etcdserver: role name is empty"),
    /// Wrong name or password.
    AuthFailed = (InvalidArgument, Denied, "etcdserver: authentication failed, invalid user ID or password"),
    /// A password for a user that has none.
    NoPasswordUser = (Unknown, Denied, "auth: authentication failed, password was given for no password user"),
    /// A grant without a permission.
    PermissionNotGiven = (InvalidArgument, Invalid, "etcdserver: permission not given"),
    /// The user's roles do not allow the request.
    PermissionDenied = (PermissionDenied, Denied, "etcdserver: permission denied"),
    /// The user does not have the role to take away.
    RoleNotGranted = (FailedPrecondition, NotFound, "etcdserver: role is not granted to the user"),
    /// The role does not have the permission to take away.
    PermissionNotGranted = (FailedPrecondition, NotFound, "etcdserver: permission is not granted to the role"),
    /// Authentication is off.
    AuthNotEnabled = (FailedPrecondition, Conflict, "etcdserver: authentication is not enabled"),
    /// The token is unknown or has expired.
    InvalidAuthToken = (Unauthenticated, Denied, "etcdserver: invalid auth token"),
    /// A change that would lock everybody out, or a malformed one.
    InvalidAuthManagement = (InvalidArgument, Invalid, "etcdserver: invalid auth management"),
    /// Rights changed since the token was checked; authenticate again.
    AuthOldRevision = (InvalidArgument, Denied, "etcdserver: revision of auth store is old"),

    // The state of the cluster.

    /// No leader is known.
    NoLeader = (Unavailable, Unavailable, "etcdserver: no leader"),
    /// The member asked does not lead.
    NotLeader = (FailedPrecondition, Unavailable, "etcdserver: not leader"),
    /// Leadership changed during a read.
    LeaderChanged = (Unavailable, Unavailable, "etcdserver: leader changed"),
    /// Raft did not accept the proposal.
    ProposalDropped = (Unknown, Unavailable, "raft proposal dropped"),
    /// The cluster's version does not offer the service yet.
    NotCapable = (FailedPrecondition, Unavailable, "etcdserver: not capable"),
    /// The member is shutting down. Writes under way when it began may have been applied.
    Stopped = (Unavailable, Stopped, "etcdserver: server stopped"),
    /// The member was removed from its cluster, for good.
    MemberRemoved = (Unavailable, Stopped, "etcdserver: the member has been permanently removed from the cluster"),
    /// No answer from the cluster in time.
    Timeout = (Unavailable, Timeout, "etcdserver: request timed out"),
    /// No answer in time; a leader was lost meanwhile.
    TimeoutLeaderFailure = (Unavailable, Timeout, "etcdserver: request timed out, possibly due to previous leader failure"),
    /// No answer in time; a connection was lost meanwhile.
    TimeoutConnectionLost = (Unavailable, Timeout, "etcdserver: request timed out, possibly due to connection lost"),
    /// Handing leadership over took too long.
    TimeoutLeaderTransfer = (Unknown, Timeout, "etcdserver: request timed out, leader transfer took too long"),
    /// The member did not catch up in time to answer a read; nothing was written.
    TimeoutWaitApplied = (Unavailable, Unavailable, "etcdserver: request timed out, waiting for the applied index took too long"),
    /// A proxy reached no member, and nothing was sent. The words are those after which Go's client sends
    /// a write again.
    NoConnection = (Unavailable, Unavailable, "there is no connection available"),
    /// Too few members are connected for a change of membership.
    Unhealthy = (Unavailable, Unavailable, "etcdserver: unhealthy cluster"),
    /// Members disagree about the data.
    Corrupt = (DataLoss, Corrupt, "etcdserver: corrupt cluster"),
    /// The caller gave up.
    Canceled = (Cancelled, Timeout, "etcdserver: request canceled"),
    /// The caller's own deadline passed.
    DeadlineExceeded = (DeadlineExceeded, Timeout, "etcdserver: context deadline exceeded"),
    /// An action outside the enum of a maintenance request.
    UnknownMethod = (Unknown, Invalid, "etcdserver: unknown method"),
    /// A health check of a service that does not exist.
    UnknownService = (NotFound, NotFound, "unknown service"),

    // Downgrades.

    /// A target version that is not one.
    DowngradeBadVersion = (InvalidArgument, Invalid, "etcdserver: wrong downgrade target version format"),
    /// A target version that cannot be reached.
    DowngradeInvalidTarget = (InvalidArgument, Invalid, "etcdserver: invalid downgrade target version"),
    /// The cluster's version is not known yet.
    ClusterVersionUnavailable = (FailedPrecondition, Unavailable, "etcdserver: cluster version not found during downgrade"),
    /// A downgrade is under way.
    DowngradeInProgress = (FailedPrecondition, Conflict, "etcdserver: cluster has a downgrade job in progress"),
    /// No downgrade is under way.
    NoDowngrade = (FailedPrecondition, Conflict, "etcdserver: no inflight downgrade job"),

    // The lock and election services.

    /// The lock is held by another session.
    Locked = (Unknown, Conflict, "mutex: Locked by another session"),
    /// The lease ended while waiting.
    LockSessionExpired = (Unknown, NotFound, "mutex: session is expired"),
    /// The lock was given up before.
    LockReleased = (Unknown, Conflict, "mutex: lock has already been released"),
    /// The leadership named is over.
    ElectionNotLeader = (Unknown, Conflict, "election: not leader"),
    /// Nobody leads.
    ElectionNoLeader = (Unknown, NotFound, "election: no leader"),

    // Quorate's own.

    /// A key or range end above [`KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX).
    KeyTooLong = (InvalidArgument, Invalid, "quorate: key is longer than 32000 bytes"),
    /// A user, role or member name above [`KEY_BYTES_MAX`](crate::limits::KEY_BYTES_MAX).
    NameTooLong = (InvalidArgument, Invalid, "quorate: name is longer than 32000 bytes"),
    /// Transactions nested deeper than [`TXN_DEPTH_MAX`](crate::limits::TXN_DEPTH_MAX).
    TxnTooDeep = (InvalidArgument, Invalid, "quorate: transaction is nested deeper than 8 levels"),
    /// An alarm action or type outside the enums.
    UnknownAlarm = (InvalidArgument, Invalid, "quorate: unknown alarm action or type"),
    /// More watchers than one stream, or one member, may have.
    TooManyWatchers = (ResourceExhausted, Exhausted, "quorate: too many watchers"),
    /// The answer would exceed the limit; ask with a limit or a stream.
    AnswerTooLarge = (ResourceExhausted, Exhausted, "quorate: answer is too large"),
    /// The cluster was restored from a backup, and its leader has not let clients in yet.
    RestoreUnfinished = (Unavailable, Unavailable, "quorate: restored from a backup, not ready yet"),
    /// A raft log command this version cannot read; it changed nothing.
    UnknownCommand = (Internal, Corrupt, "quorate: unknown command in the log"),
    /// Storage failed; the member refuses writes until it is restarted.
    StorageFailed = (Internal, Internal, "quorate: storage failed"),
    /// A broken invariant.
    Internal = (Internal, Internal, "quorate: internal error"),
    /// Part of the API that this version does not offer.
    Unimplemented = (Unimplemented, Unimplemented, "quorate: not implemented"),
}

impl Reason {
    /// Whether the request may have been applied although it failed; see [`Kind::is_ambiguous`].
    #[must_use]
    pub fn is_ambiguous(self) -> bool {
        self.kind().is_ambiguous()
    }

    /// Whether the request certainly changed nothing and may well pass when repeated as it is,
    /// after a pause or on another member.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        self.kind() == Kind::Unavailable || self == Self::TooManyRequests
    }

    /// The reason told with this code and exact text.
    ///
    /// With the code `Unknown` the text alone decides: etcd's lock and election services pass all
    /// errors on that way, as its members do with some.
    #[must_use]
    pub fn find(code: Code, text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.text() == text)
            .filter(|reason| code == reason.code() || code == Code::Unknown)
    }

    /// The reason a status tells, if it is in the catalogue.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        Self::find(status.code(), status.message())
    }

    /// The status with the code `Unknown`, as etcd's lock and election services answer whatever
    /// went wrong below them.
    #[must_use]
    pub fn into_unmapped_status(self) -> Status {
        Status::unknown(self.text())
    }

    /// The text with its code in front, as a refused watch gives it for its cancel reason:
    /// `rpc error: code = PermissionDenied desc = etcdserver: permission denied`.
    #[must_use]
    pub fn rpc_text(self) -> String {
        let text = self.text();
        match self.code() {
            // The one name in which Go's gRPC differs.
            Code::Cancelled => format!("rpc error: code = Canceled desc = {text}"),
            code => format!("rpc error: code = {code:?} desc = {text}"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}

impl std::error::Error for Reason {}

impl From<Reason> for Status {
    fn from(reason: Reason) -> Self {
        Self::new(reason.code(), reason.text())
    }
}
