//! `quorate snapshot status`: what a backup file holds, in etcdutl's words.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use quorate::core::backup::BackupStatus;

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Simple,
    Table,
    Json,
    Fields,
}

/// Flags of `quorate snapshot status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The file: a snapshot, or a member's member/snap/db of etcd while no member runs on it
    file: PathBuf,

    /// How it is shown: simple is hash, revision, total keys, total size, version
    #[arg(short = 'w', long, value_name = "FORMAT", default_value = "simple")]
    write_out: Format,
}

/// Shows the status of a file.
///
/// # Errors
/// It cannot be read, or is not whole.
#[expect(clippy::print_stdout, reason = "what the command was called for")]
pub(super) fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let status = BackupStatus::of(&args.file)?;
    println!("{}", shown(&status, args.write_out)?);
    Ok(())
}

fn shown(status: &BackupStatus, format: Format) -> anyhow::Result<String> {
    let BackupStatus {
        hash,
        revision,
        total_key,
        total_size,
        version,
    } = status;
    let cells = [
        ("HASH", format!("{hash:x}")),
        ("REVISION", revision.to_string()),
        ("TOTAL KEYS", total_key.to_string()),
        ("TOTAL SIZE", size(*total_size)),
        ("VERSION", version.clone()),
    ];
    Ok(match format {
        Format::Simple => cells.map(|(_, cell)| cell).join(", "),
        Format::Table => table(&cells),
        Format::Json => serde_json::to_string(status)?,
        Format::Fields => format!(
            "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {total_key}\n\
             \"Size\" : {total_size}\n\"Version\" : \"{version}\""
        ),
    })
}

/// One row under its heads.
fn table(cells: &[(&str, String)]) -> String {
    let (mut rule, mut head, mut row) = ("+".to_owned(), "|".to_owned(), "|".to_owned());
    for (name, cell) in cells {
        let width = name.len().max(cell.len());
        rule += &format!("{:-<1$}+", "", width + 2);
        head += &format!(" {name:^width$} |");
        row += &format!(" {cell:>width$} |");
    }
    format!("{rule}\n{head}\n{rule}\n{row}\n{rule}")
}

/// A size for people, in powers of 1,000 and two digits, as etcd's tools show it.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let (mut whole, mut unit) = (1_u64, 0);
    while unit + 1 < UNITS.len() && bytes / whole >= 1_000 {
        whole *= 1_000;
        unit += 1;
    }
    // Rounded to tenths, then to even where no tenths are shown: so do they.
    let tenths = (u128::from(bytes) * 10 + u128::from(whole) / 2) / u128::from(whole);
    let (units, rest) = (tenths / 10, tenths % 10);
    if tenths < 100 {
        return format!("{units}.{rest} {}", UNITS[unit]);
    }
    let is_up = rest > 5 || (rest == 5 && units % 2 == 1);
    format!("{} {}", units + u128::from(is_up), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_as_etcds_tools_do() {
        for (bytes, said) in [
            (0, "0 B"),
            (9, "9 B"),
            (10, "10 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (20_480, "20 kB"),
            (21_504, "22 kB"),
            (24_576, "25 kB"),
            (2_146_304, "2.1 MB"),
            (82_854_982, "83 MB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(size(bytes), said);
        }
    }

    #[test]
    fn every_format_shows_the_same() {
        let status = BackupStatus {
            hash: 0xfe01_cf57,
            revision: 10,
            total_key: 7,
            total_size: 2_146_304,
            version: "3.6.0".to_owned(),
        };
        let shown = |format| shown(&status, format).unwrap();
        assert_eq!(shown(Format::Simple), "fe01cf57, 10, 7, 2.1 MB, 3.6.0");
        assert_eq!(
            shown(Format::Json),
            "{\"hash\":4261531479,\"revision\":10,\"totalKey\":7,\"totalSize\":2146304,\
             \"version\":\"3.6.0\"}"
        );
        assert_eq!(
            shown(Format::Table),
            "+----------+----------+------------+------------+---------+\n\
             |   HASH   | REVISION | TOTAL KEYS | TOTAL SIZE | VERSION |\n\
             +----------+----------+------------+------------+---------+\n\
             | fe01cf57 |       10 |          7 |     2.1 MB |   3.6.0 |\n\
             +----------+----------+------------+------------+---------+"
        );
        assert!(shown(Format::Fields).starts_with("\"Hash\" : 4261531479\n"));
    }
}
