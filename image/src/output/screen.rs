//! The log on the framebuffer: white text on black, top to bottom, then from the top again with the old lines cleared ahead.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

/// A linear framebuffer of 32-bit pixels.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Physical address of the top left pixel.
    pub base: u64,
    /// Visible pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Pixels from one row to the next.
    pub stride: usize,
}

const CELL_HEIGHT: usize = RasterHeight::Size16.val();
const CELL_WIDTH: usize = get_raster_width(FontWeight::Regular, RasterHeight::Size16);

/// Where the next character goes.
pub struct Text {
    screen: Screen,
    column: usize,
    row: usize,
}

impl Text {
    /// Clears the screen and starts at its top.
    pub fn new(screen: Screen) -> Self {
        let mut text = Text {
            screen,
            column: 0,
            row: 0,
        };
        for row in 0..text.rows() {
            text.clear_row(row);
        }
        text
    }

    fn rows(&self) -> usize {
        (self.screen.height / CELL_HEIGHT).max(1)
    }

    fn columns(&self) -> usize {
        (self.screen.width / CELL_WIDTH).max(1)
    }

    fn put_pixel(&mut self, x: usize, y: usize, grey: u8) {
        if x < self.screen.width && y < self.screen.height {
            let at = self.screen.base + 4 * (y * self.screen.stride + x) as u64;
            // Grey is the same in RGB and BGR.
            // SAFETY: the firmware's graphics mode says that this pixel is there, and devices are mapped one to one.
            unsafe { (at as *mut u32).write_volatile(u32::from(grey) * 0x01_0101) };
        }
    }

    fn clear_row(&mut self, row: usize) {
        for y in row * CELL_HEIGHT..(row + 1) * CELL_HEIGHT {
            for x in 0..self.screen.width {
                self.put_pixel(x, y, 0);
            }
        }
    }

    fn new_line(&mut self) {
        self.column = 0;
        self.row = (self.row + 1) % self.rows();
        // An empty row shows where the newest line ends and the oldest begins; it is also the next one to be written.
        self.clear_row((self.row + 1) % self.rows());
    }

    /// Shows one byte of text; what is not printable ASCII shows as a question mark.
    pub fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => return self.new_line(),
            b'\r' => return,
            _ => {}
        }
        if self.column >= self.columns() {
            self.new_line();
        }
        let raster = |c| get_raster(c, FontWeight::Regular, RasterHeight::Size16);
        let glyph = if byte.is_ascii_graphic() || byte == b' ' {
            raster(char::from(byte))
        } else {
            raster('?')
        };
        if let Some(glyph) = glyph {
            let (left, top) = (self.column * CELL_WIDTH, self.row * CELL_HEIGHT);
            for (y, line) in glyph.raster().iter().enumerate() {
                for (x, &grey) in line.iter().enumerate() {
                    if grey > 0 {
                        self.put_pixel(left + x, top + y, grey);
                    }
                }
            }
        }
        self.column += 1;
    }
}
