//! Printing: tables for people, plain columns when piped, JSON for programs.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::{cli::Format, failure::Failure};

/// Where and how a command prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    format: Format,
    terminal: bool,
    color: bool,
}

/// Columns with a header.
#[derive(Debug)]
pub(crate) struct Columns {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Columns of numbers.
    right: Vec<usize>,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            format,
            terminal,
            color: terminal && wanted,
        }
    }

    /// As if its output went into a pipe.
    #[cfg(test)]
    pub(crate) fn piped() -> Self {
        Self {
            format: Format::Table,
            terminal: false,
            color: false,
        }
    }

    /// Whether a person looks at standard output.
    pub(crate) fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Whether a program reads standard output.
    pub(crate) fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Prints `json` if JSON was asked for, else the text.
    pub(crate) fn print(self, json: &Value, text: impl FnOnce(Self) -> String) -> Result<(), Failure> {
        let mut out = match self.format {
            Format::Json => json.to_string(),
            Format::Table => text(self),
        };
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        write(out.as_bytes())
    }

    /// A table with lines on a terminal, columns of words elsewhere.
    pub(crate) fn table(self, columns: &Columns) -> String {
        let mut table = Table::new();
        table.load_style(if self.terminal {
            presets::UTF8_HORIZONTAL_ONLY
        } else {
            presets::NOTHING
        });
        let arrangement = if self.terminal {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        };
        table.set_content_arrangement(arrangement);
        if self.color {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(
            columns
                .header
                .iter()
                .map(|name| Cell::new(name).add_attribute(Attribute::Bold)),
        );
        for row in &columns.rows {
            table.add_row(row);
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            if !self.terminal {
                column.set_padding((0, 1));
            }
            if columns.right.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.trim_fmt()
    }

    /// A bar on the terminal of standard error; invisible elsewhere.
    pub(crate) fn progress(self, total: Option<u64>, template: &str) -> ProgressBar {
        if !io::stderr().is_terminal() || self.format == Format::Json {
            return ProgressBar::hidden();
        }
        let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    }

    /// Tells a failure on standard error.
    pub(crate) fn failure(self, failure: &Failure) {
        let text = match self.format {
            Format::Json => failure.json().to_string(),
            Format::Table => format!("error: {failure}"),
        };
        let _ = writeln!(io::stderr(), "{text}");
    }
}

impl Columns {
    /// Empty, with these names; `right` are the indexes of columns of numbers.
    pub(crate) fn new(header: &[&'static str], right: &[usize]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
            right: right.to_vec(),
        }
    }

    /// Adds a row. An empty cell becomes `-`, so that columns can be counted when piped.
    pub(crate) fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let cells = cells.into_iter().map(Into::into);
        self.rows.push(
            cells
                .map(|cell: String| if cell.is_empty() { "-".to_owned() } else { cell })
                .collect(),
        );
    }
}

/// Prints bytes as they are.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::io("cannot write to standard output", &error))
}

/// Tells something that does not end the command, on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn piped_tables_are_plain_columns() {
        let output = Output::piped();
        let mut columns = Columns::new(&["MEMBER", "ZONE", "TOKENS"], &[2]);
        columns.row(["n1", "a", "86"]);
        columns.row(["n10", "", "5"]);
        assert_eq!(
            output.table(&columns),
            "MEMBER ZONE TOKENS\nn1     a        86\nn10    -         5"
        );
    }

    #[test]
    fn a_person_gets_lines_and_no_color_is_heeded() {
        let mut columns = Columns::new(&["A"], &[]);
        columns.row(["b"]);
        let colored = Output {
            format: Format::Table,
            terminal: true,
            color: true,
        }
        .table(&columns);
        let plain = Output {
            format: Format::Table,
            terminal: true,
            color: false,
        }
        .table(&columns);
        assert!(colored.contains('\u{1b}') && colored.contains('─'), "{colored:?}");
        assert!(!plain.contains('\u{1b}') && plain.contains('─'), "{plain:?}");
    }
}
