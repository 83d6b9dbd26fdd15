//! What decoders of foreign bytes must bear: one function a target, which takes any bytes and panics
//! if a promise is broken. Run without end by the fuzz targets in `fuzz/`, and on a few thousand
//! inputs by this crate's test, so that the targets always compile and hold.
//!
//! - [`requests`]: client requests, checked and executed
//! - [`log_records`]: the raft log's files, damaged or made up
//! - [`snapshot_frames`]: a snapshot on its way in
//! - [`backup_files`]: a backup that is restored
//! - [`peer_messages`]: what other members send
//! - [`stored_records`]: keys and records of the state
//! - [`gateway_json`]: requests as JSON

mod input;

pub mod backup_files;
pub mod gateway_json;
pub mod log_records;
pub mod peer_messages;
pub mod requests;
pub mod snapshot_frames;
pub mod stored_records;

pub use input::Input;

/// A target: takes any bytes and panics if a promise is broken.
pub type Target = fn(&[u8]);

/// All targets by name, which is also that of the binary in `fuzz/` and of the folder of its seeds.
pub const TARGETS: [(&str, Target); 7] = [
    ("requests", requests::run),
    ("log_records", log_records::run),
    ("snapshot_frames", snapshot_frames::run),
    ("backup_files", backup_files::run),
    ("peer_messages", peer_messages::run),
    ("stored_records", stored_records::run),
    ("gateway_json", gateway_json::run),
];
