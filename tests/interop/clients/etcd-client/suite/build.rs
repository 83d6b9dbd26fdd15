//! Copies the published tests beside a `testing` module that names the server, which they fix at
//! `localhost:2379`.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-env-changed=ETCD_CLIENT_SOURCE");
    println!("cargo:rerun-if-env-changed=ETCD_CLIENT_ENDPOINT");
    let variable =
        |name| env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")));
    let (source, endpoint) = (
        variable("ETCD_CLIENT_SOURCE")?,
        variable("ETCD_CLIENT_ENDPOINT")?,
    );
    let (from, to) = (Path::new(&source).join("tests"), variable("OUT_DIR")?);
    for file in ["client.rs", "namespace.rs"] {
        fs::copy(from.join(file), Path::new(&to).join(file))?;
    }
    let testing = fs::read_to_string(from.join("testing.rs"))?;
    let named = testing.replace("localhost:2379", &endpoint);
    if named == testing {
        return Err(io::Error::other(
            "tests/testing.rs does not name localhost:2379",
        ));
    }
    fs::write(Path::new(&to).join("testing.rs"), named)
}
