//! A picture (SVG) of the panel, for the README: what is drawn is what the panel shows, cell by cell.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};

/// Size of a cell in the picture's units, as a monospaced face of 14 units has it.
const CELL: (f64, f64) = (8.4, 18.0);
const MARGIN: f64 = 14.0;
const BACKGROUND: &str = "#11151c";
const FOREGROUND: &str = "#d8dee9";

/// Writes a picture of `buffer`.
///
/// # Errors
/// When the file cannot be written.
pub fn write(buffer: &Buffer, path: &Path) -> Result<()> {
    std::fs::write(path, render(buffer))
        .with_context(|| format!("cannot write {}", path.display()))?;
    super::root::give_to_user(path);
    Ok(())
}

fn render(buffer: &Buffer) -> String {
    let width = f64::from(buffer.area.width) * CELL.0 + 2.0 * MARGIN;
    let height = f64::from(buffer.area.height) * CELL.1 + 2.0 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"'DejaVu Sans Mono','Menlo','Consolas',monospace\" font-size=\"14\" xml:space=\"preserve\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut run = Run::default();
        for x in buffer.area.left()..buffer.area.right() {
            let Some(cell) = buffer.cell((x, y)) else {
                continue;
            };
            let reversed = cell.modifier.contains(Modifier::REVERSED);
            let look = Look {
                color: color(cell.fg),
                bold: cell.modifier.contains(Modifier::BOLD),
                reversed,
            };
            if look != run.look {
                run.flush(&mut svg, y);
                run = Run {
                    look,
                    start: x,
                    text: String::new(),
                };
            }
            run.text.push_str(cell.symbol());
        }
        run.flush(&mut svg, y);
    }
    svg.push_str("</svg>\n");
    svg
}

#[derive(Clone, Copy, PartialEq)]
struct Look {
    color: &'static str,
    bold: bool,
    reversed: bool,
}

/// Cells in a row that look the same.
struct Run {
    look: Look,
    start: u16,
    text: String,
}

impl Default for Run {
    fn default() -> Run {
        Run {
            look: Look {
                color: FOREGROUND,
                bold: false,
                reversed: false,
            },
            start: 0,
            text: String::new(),
        }
    }
}

impl Run {
    fn flush(&self, svg: &mut String, y: u16) {
        let trimmed = self.text.trim_start_matches(' ');
        let skipped = self.text.len() - trimmed.len();
        let shown = trimmed.trim_end_matches(' ');
        if shown.is_empty() && !self.look.reversed {
            return;
        }
        let x = f64::from(self.start) * CELL.0 + MARGIN;
        let top = f64::from(y) * CELL.1 + MARGIN;
        let cells = self.text.chars().count() as f64;
        let color = if self.look.reversed {
            BACKGROUND
        } else {
            self.look.color
        };
        // Writing to a string cannot fail.
        if self.look.reversed {
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>",
                cells * CELL.0,
                CELL.1,
                self.look.color
            );
        }
        let weight = if self.look.bold {
            " font-weight=\"bold\""
        } else {
            ""
        };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" textLength=\"{:.1}\" lengthAdjust=\"spacingAndGlyphs\" fill=\"{color}\"{weight}>{}</text>",
            x + skipped as f64 * CELL.0,
            top + CELL.1 * 0.75,
            shown.chars().count() as f64 * CELL.0,
            shown
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
        );
    }
}

fn color(color: Color) -> &'static str {
    match color {
        Color::Red => "#e06c75",
        Color::Green => "#98c379",
        Color::Yellow => "#e5c07b",
        Color::Cyan => "#56b6c2",
        Color::Magenta => "#c678dd",
        Color::DarkGray => "#7f8796",
        _ => FOREGROUND,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    #[test]
    fn cells_become_text_in_their_place_and_colour() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 20, 2));
        buffer.set_string(2, 1, "a<b", Style::new().fg(Color::Green));
        let svg = render(&buffer);
        assert!(svg.contains("x=\"30.8\" y=\"45.5\""), "{svg}");
        assert!(svg.contains("fill=\"#98c379\">a&lt;b</text>"), "{svg}");
        assert_eq!(svg.matches("<text").count(), 1);
    }
}
