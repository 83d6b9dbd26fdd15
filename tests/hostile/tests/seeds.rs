//! Every target, on a few thousand inputs of its own and on the seeds of its folder, if it has some:
//! what the gate sees of the fuzz targets. A crash found by fuzzing becomes a file in
//! `seeds/<target>/`.

use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;

use quorate_hostile::{TARGETS, Target};

/// Inputs made for each target, beside its seeds.
const MADE: u64 = 2_000;
/// Bytes of an input made here at most.
const BYTES_MAX: u64 = 200;

/// Some of what a target does runs in tasks, where a panic would go unnoticed: so every panic ends
/// the process. It says by itself which input was at fault, since what a test printed is lost then.
fn abort_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            let what = INPUT.with_borrow(|input| format!("{input}: {panic}\n"));
            drop(std::io::stderr().write_all(what.as_bytes()));
            std::process::abort();
        }));
    });
}

thread_local! {
    static INPUT: RefCell<String> = const { RefCell::new(String::new()) };
}

fn run_as(name: String, run: Target, data: &[u8]) {
    INPUT.set(name);
    run(data);
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn input(&mut self) -> Vec<u8> {
        let length = self.next() % BYTES_MAX;
        // Small numbers lead further than evenly spread ones.
        let small = self.next().is_multiple_of(2);
        let byte = |number: u64| if small { number % 19 } else { number % 256 };
        (0..length)
            .map(|_| u8::try_from(byte(self.next())).expect("a byte"))
            .collect()
    }
}

fn seeds(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("seeds")
        .join(target);
    let Ok(files) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    files
        .map(|file| file.expect("a readable folder").path())
        .collect()
}

/// File names of what libFuzzer runs, sorted.
fn binaries() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let files = std::fs::read_dir(folder).expect("the folder of the binaries");
    let name = |file: std::io::Result<std::fs::DirEntry>| {
        let name = file.expect("a readable folder").file_name();
        name.to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = files.map(name).collect();
    names.sort_unstable();
    names
}

fn hold(name: &str) {
    abort_on_panic();
    let found = TARGETS.iter().find(|(target, _)| *target == name);
    let (_, run): &(&str, Target) = found.expect("a target of that name");
    for seed in seeds(name) {
        let data = std::fs::read(&seed).expect("a readable seed");
        run_as(seed.display().to_string(), *run, &data);
    }
    for number in 0..MADE {
        let data = Random(number).input();
        run_as(format!("{name}: input {number}"), *run, &data);
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                hold(stringify!($name));
            }
        )*

        #[test]
        fn none_is_left_out() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|(name, _)| name), tested);
            let mut named = TARGETS.map(|(name, _)| format!("{name}.rs"));
            named.sort_unstable();
            assert_eq!(binaries(), named, "one binary a target");
        }
    };
}

targets! { requests log_records snapshot_frames backup_files peer_messages stored_records gateway_json }
