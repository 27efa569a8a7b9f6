//! Progress of long work: one line on a terminal that rewrites itself, and silence in a pipe.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use tokio::time::Instant;

/// How often the line is redrawn: often enough to look alive, seldom enough to cost nothing.
const REDRAW_EVERY: Duration = Duration::from_millis(200);

/// A progress line on stderr.
#[derive(Debug)]
pub struct Progress {
    visible: bool,
    next_redraw: Instant,
    drawn: bool,
}

impl Progress {
    /// A line that is drawn only if stderr is a terminal.
    pub fn on_terminal() -> Self {
        Self { visible: super::stderr_is_terminal(), next_redraw: Instant::now(), drawn: false }
    }

    /// Redraws the line if it is time to; `text` is asked only then.
    pub fn update<T: fmt::Display>(&mut self, text: impl FnOnce() -> T) {
        if !self.visible || Instant::now() < self.next_redraw {
            return;
        }
        self.next_redraw = Instant::now() + REDRAW_EVERY;
        self.drawn = true;
        self.draw(&text().to_string());
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            self.draw("");
        }
    }

    fn draw(&self, text: &str) {
        let mut stderr = io::stderr().lock();
        // Progress that cannot be drawn is no reason to stop the work.
        let _ = write!(stderr, "\r\x1b[2K{text}").and_then(|()| stderr.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
