//! Other people's clients against quorate, with a real etcd beside it as the measure.

mod etcdctl;
mod services;
mod snapshot;
