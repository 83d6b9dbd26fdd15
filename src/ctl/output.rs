//! How the cluster commands print: etcd's lines, tables and JSON, and JSON made for people and jq.

use std::io::Write as _;
use std::time::Duration;

use clap::{Args, ValueEnum};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentLineStyle, LineStyle, Table, TableStyle};
use serde::Serialize;

use super::environment;
use super::failure::{Exit, Failure};

/// etcdctl's forms of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Lines, as etcdctl's
    Simple,
    /// A table
    Table,
    /// JSON, as etcdctl's: ids are numbers
    Json,
}

/// In which form to print.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// In which form to print [env: QUORATE_WRITE_OUT, ETCDCTL_WRITE_OUT] [default: simple]
    #[arg(short, long, global = true, value_name = "FORM")]
    write_out: Option<Format>,

    /// Print JSON for people and jq: ids in hex, times in seconds
    #[arg(long, global = true, conflicts_with = "write_out")]
    json: bool,
}

/// The form asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Simple,
    Table,
    /// As etcdctl.
    EtcdJson,
    Json,
}

impl OutputArgs {
    /// These, or `outer` where these say nothing.
    pub(crate) fn or(self, outer: Self) -> Self {
        if self.any() { self } else { outer }
    }

    /// Whether any of them was given.
    pub(crate) fn any(&self) -> bool {
        self.write_out.is_some() || self.json
    }

    /// The form these and the environment ask for.
    ///
    /// # Errors
    /// When the environment asks for one that there is not.
    pub(crate) fn style(&self) -> Result<Style, Failure> {
        if self.json {
            return Ok(Style::Json);
        }
        let format = match (self.write_out, environment("WRITE_OUT")) {
            (Some(format), _) => format,
            (None, Some(name)) => Format::from_str(&name, false).map_err(|_| {
                let what = format!("WRITE_OUT in the environment: no form `{name}`");
                Failure::new(Exit::Usage, what).hint("simple, table or json")
            })?,
            (None, None) => Format::Simple,
        };
        Ok(match format {
            Format::Simple => Style::Simple,
            Format::Table => Style::Table,
            Format::Json => Style::EtcdJson,
        })
    }
}

/// Prints what a command has to say, at once.
///
/// # Errors
/// When it cannot be written. That nobody reads on is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::new(
            Exit::Failed,
            format!("the output could not be written: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints lines.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_lines(lines: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let text: String = lines.into_iter().map(|line| line + "\n").collect();
    print(&text)
}

/// Prints JSON on one line.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    print(&(text + "\n"))
}

/// A table in a box, as etcdctl draws it, but for its texts which are on the left.
pub(crate) fn boxed(header: &[&str], rows: &[Vec<String>]) -> String {
    const EDGE: LineStyle = LineStyle::new('+', '-', '+', '+');
    const CONTENT: ContentLineStyle = ContentLineStyle::new('|', '|', '|');
    const BOXED: TableStyle = TableStyle::new()
        .top_border(EDGE)
        .header_lines(CONTENT)
        .header_separator(EDGE)
        .content_lines(CONTENT)
        .bottom_border(EDGE);
    let mut table = Table::new();
    table.load_style(BOXED).set_header(header);
    table.add_rows(rows);
    format!("{table}\n")
}

/// A table without lines; `right` are the columns of numbers.
pub(crate) fn columns(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table.add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// A size in etcdctl's words: `20 kB`, `4.1 MB`.
pub(crate) fn size(bytes: i64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    // Below zero is no size.
    let bytes = u64::try_from(bytes).unwrap_or(0);
    let reached = UNITS
        .iter()
        .zip(0_u32..)
        .take_while(|(_, i)| bytes >= 1000_u64.pow(*i));
    let Some((unit, i @ 1..)) = reached.last() else {
        return format!("{bytes} B");
    };
    // In tenths, rounded.
    let one = u128::from(1000_u64.pow(i));
    let tenths = (u128::from(bytes) * 10 + one / 2) / one;
    if tenths < 100 {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    } else {
        // What is left of the tenths goes to the even one, as etcdctl's formatting has it.
        let (whole, rest) = (tenths / 10, tenths % 10);
        let up = rest > 5 || (rest == 5 && whole % 2 == 1);
        format!("{} {unit}", whole + u128::from(up))
    }
}

/// A number with its digits in groups: `91,204`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A round trip in milliseconds.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_etcdctls() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (20_480, "20 kB"),
            (32_768, "33 kB"),
            (4_149_000, "4.1 MB"),
            (9_960_000, "10 MB"),
            (25_165_824, "25 MB"),
            (2_147_483_648, "2.1 GB"),
            (i64::MAX, "9.2 EB"),
            (-1, "0 B"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn digits_come_in_groups_of_three() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (91_204, "91,204"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
        assert_eq!(millis(Duration::from_micros(340)), "0.3 ms");
    }

    #[test]
    fn tables_have_etcdctls_box() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["bcd".to_owned(), String::new()],
        ];
        let told = "\
+-----+--------+
| ID  | STATUS |
+-----+--------+
| a   | 1      |
| bcd |        |
+-----+--------+
";
        assert_eq!(boxed(&["ID", "STATUS"], &rows), told);
    }

    #[test]
    fn columns_have_numbers_on_the_right_and_nothing_behind() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned(), "x".to_owned()],
            vec!["bcd".to_owned(), "10".to_owned(), "y".to_owned()],
        ];
        let told = "ID   LAG  END\na      1  x\nbcd   10  y\n";
        assert_eq!(columns(&["ID", "LAG", "END"], &[1], &rows), told);
    }
}
