//! Prints where the vendored `protoc` is, for the variable `PROTOC` that the build script of
//! `etcd-client` reads.

fn main() -> Result<(), protoc_bin_vendored::Error> {
    println!("{}", protoc_bin_vendored::protoc_bin_path()?.display());
    Ok(())
}
