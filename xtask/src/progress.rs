//! Progress bars and spinners, all of one look. On something that is not a terminal they draw nothing, so each also says in
//! one line what it began.

use std::borrow::Cow;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A spinner for something whose end is not known.
pub fn spinner(text: impl Into<Cow<'static, str>>) -> ProgressBar {
    let text = text.into();
    if !console::user_attended_stderr() {
        eprintln!("{text} …");
    }
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.set_message(text);
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// A bar for `total` bytes.
pub fn bytes(total: u64, text: impl Into<Cow<'static, str>>) -> ProgressBar {
    let text = text.into();
    if !console::user_attended_stderr() {
        eprintln!("{text} …");
    }
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
    ) {
        bar.set_style(style);
    }
    bar.set_message(text);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A spinner that says nothing when there is no terminal.
pub fn quiet_spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}
