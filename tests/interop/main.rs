//! Other people's clients against quorate, with a real etcd beside it as the measure.

mod ctl;
mod differential;
mod etcdctl;
mod gateway;
mod gateway_doc;
mod lines;
mod restore;
mod services;
mod snapshot;
