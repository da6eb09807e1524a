//! The terminal: taken, drawn on, and given back on every way out.

use std::io;

use ratatui::DefaultTerminal;

use super::view::View;

/// The whole terminal. It is restored when this is dropped; ratatui restores it in a panic too.
pub(super) struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal.
    pub(super) fn open() -> io::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                // It may have been taken in part.
                ratatui::restore();
                Err(error)
            }
        }
    }

    /// Draws everything.
    pub(super) fn draw(&mut self, view: &View<'_>) -> io::Result<()> {
        self.0.draw(|frame| view.draw(frame)).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
