//! The terminal: the panel on it and the keys from it, or nothing where there is none.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, raise};
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;

use super::Wish;
use super::live::Live;
use super::panel::{self, Rates};
use crate::process::AtExit;

/// How often the panel is drawn.
const FRAME: Duration = Duration::from_millis(200);
/// Size of the picture, in cells.
const PICTURE: (u16, u16) = (150, 46);

/// The terminal while the panel is on it. Dropping it gives the terminal back.
pub struct Screen {
    terminal: Option<(DefaultTerminal, AtExit)>,
    rates: Rates,
}

impl Screen {
    /// Takes the terminal over, if `panel`.
    ///
    /// # Errors
    /// When the terminal cannot be set.
    pub fn new(panel: bool) -> Result<Screen> {
        let terminal = match panel {
            true => Some((ratatui::try_init()?, AtExit::new(ratatui::restore))),
            false => None,
        };
        Ok(Screen {
            terminal,
            rates: Rates::default(),
        })
    }

    /// Draws once, then waits for keys or the next time to draw.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn show(&mut self, live: &Live, wishes: &mpsc::Sender<Wish>) -> Result<()> {
        let meter = live.state().meter.clone();
        if let Some(meter) = meter {
            self.rates.sample(Instant::now(), meter.read());
        }
        let Some((terminal, _)) = &mut self.terminal else {
            std::thread::sleep(FRAME);
            return Ok(());
        };
        terminal.draw(|frame| {
            panel::draw(&live.state(), &self.rates, frame.area(), frame.buffer_mut())
        })?;
        let next = Instant::now() + FRAME;
        while event::poll(next.saturating_duration_since(Instant::now()))? {
            if let Event::Key(key) = event::read()? {
                let over = live.state().over.is_some();
                match meaning(key) {
                    Some(Meaning::End) => raise(Signal::SIGINT)?,
                    Some(Meaning::Wish(wish)) if over => wishes.send(wish)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The panel as it is now, at the picture's size.
    pub fn picture(&self, live: &Live) -> Buffer {
        let area = Rect::new(0, 0, PICTURE.0, PICTURE.1);
        let mut buffer = Buffer::empty(area);
        panel::draw(&live.state(), &self.rates, area, &mut buffer);
        buffer
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    End,
    Wish(Wish),
}

fn meaning(key: KeyEvent) -> Option<Meaning> {
    if key.kind != KeyEventKind::Press {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Meaning::End,
        KeyCode::Char('q') => Meaning::End,
        KeyCode::Char('u') => Meaning::Wish(Wish::Plug),
        KeyCode::Char('p') => Meaning::Wish(Wish::Peer),
        KeyCode::Char('f') => Meaning::Wish(Wish::Fetch),
        KeyCode::Char('n') => Meaning::Wish(Wish::FetchNext),
        KeyCode::Char('b') => Meaning::Wish(Wish::FetchBridged),
        KeyCode::Char('d') => Meaning::Wish(Wish::Directory),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_meaning() {
        let key = |code, modifiers| meaning(KeyEvent::new(code, modifiers));
        assert_eq!(
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Meaning::End)
        );
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(
            key(KeyCode::Char('u'), KeyModifiers::NONE),
            Some(Meaning::Wish(Wish::Plug))
        );
    }
}
