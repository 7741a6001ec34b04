//! What a line is like, and the notation for it on the command line: `rate=10M,rtt=100ms,loss=0.5%,…`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;

/// Bytes of a full Ethernet frame without its checksum.
pub const FULL_FRAME: u64 = 1514;

/// Both directions of a line, and its seed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LineConfig {
    /// From the branch to the core.
    pub up: DirectionConfig,
    /// From the core to the branch.
    pub down: DirectionConfig,
    /// Of all the dice: the same seed and the same frames at the same times give the same line.
    pub seed: u64,
}

/// One direction of a line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DirectionConfig {
    /// Bits a second, counted over Ethernet frames without preamble and checksum.
    pub rate_bps: u64,
    /// From the last bit sent to the frame received, in milliseconds: half of the round trip.
    pub delay_ms: f64,
    /// What waits for the rate, at most; a frame that does not fit is dropped. One frame always fits.
    pub queue_bytes: u64,
    /// Probability that a frame is lost, each by itself.
    pub loss: f64,
    /// Share of the frames that are lost in bursts, beside `loss` (Gilbert–Elliott: everything is lost in the bad state).
    pub burst_loss: f64,
    /// Mean length of a burst in frames.
    pub burst_length: f64,
    /// Probability that a frame arrives a second time.
    pub duplicate: f64,
    /// Probability that a frame is held back, so that later ones overtake it.
    pub reorder: f64,
    /// For how long it is held back, in milliseconds.
    pub reorder_delay_ms: f64,
}

impl DirectionConfig {
    /// From the last bit sent to the frame received.
    pub fn delay(&self) -> Duration {
        milliseconds(self.delay_ms)
    }

    /// What a frame that is held back waits in addition.
    pub fn reorder_delay(&self) -> Duration {
        milliseconds(self.reorder_delay_ms)
    }
}

fn milliseconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value / 1000.0).unwrap_or(Duration::MAX)
}

impl LineConfig {
    /// The round trip of an idle line.
    pub fn rtt(&self) -> Duration {
        self.up.delay() + self.down.delay()
    }
}

impl fmt::Display for LineConfig {
    /// In a few words, for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (up, down) = (&self.up, &self.down);
        match up.rate_bps == down.rate_bps {
            true => write!(f, "{}", bits(down.rate_bps))?,
            false => write!(f, "{} down, {} up", bits(down.rate_bps), bits(up.rate_bps))?,
        }
        write!(f, " · {} ms · ", up.delay_ms + down.delay_ms)?;
        let percent = |direction: &DirectionConfig| (direction.loss + direction.burst_loss) * 100.0;
        match percent(up) == percent(down) {
            true => write!(f, "{}% loss", percent(down)),
            false => write!(f, "{}% down, {}% up lost", percent(down), percent(up)),
        }
    }
}

fn bits(rate: u64) -> String {
    match rate {
        0..1_000_000 => format!("{} kbit/s", rate as f64 / 1e3),
        _ => format!("{} Mbit/s", rate as f64 / 1e6),
    }
}

impl Default for LineConfig {
    /// 10 Mbit/s, 100 ms round trip, 0.5% loss, a queue of one bandwidth-delay product.
    fn default() -> LineConfig {
        "".parse()
            .unwrap_or_else(|_| unreachable!("the empty list of settings is valid"))
    }
}

/// Settings as given, before defaults that depend on each other.
#[derive(Clone, Copy)]
struct Settings {
    rate: u64,
    rtt: Duration,
    queue: Queue,
    loss: f64,
    burst_loss: f64,
    burst_length: f64,
    duplicate: f64,
    reorder: f64,
    reorder_delay: Duration,
}

#[derive(Clone, Copy)]
enum Queue {
    Bytes(u64),
    DelayProducts(f64),
}

const DEFAULTS: Settings = Settings {
    rate: 10_000_000,
    rtt: Duration::from_millis(100),
    queue: Queue::DelayProducts(1.0),
    loss: 0.005,
    burst_loss: 0.0,
    burst_length: 4.0,
    duplicate: 0.0,
    reorder: 0.0,
    reorder_delay: Duration::from_millis(5),
};

const KEYS: &str = "rate, rtt, loss, queue, seed, burst-loss, burst-length, duplicate, reorder, reorder-delay, \
                    each but seed and rtt also for one direction as up.rate or down.rate";

impl Settings {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "rate" => {
                self.rate = quantity(
                    value
                        .trim_end_matches("bit/s")
                        .trim_end_matches("bit")
                        .trim_end_matches("bps"),
                    1000.0,
                )
                .context("a rate is bits a second: 10M, 512k")?;
                ensure!(
                    (1000..=100_000_000_000).contains(&self.rate),
                    "a rate is between 1k and 100G bits a second"
                );
            }
            "queue" => {
                self.queue = match value.strip_suffix("bdp") {
                    Some(number) => Queue::DelayProducts(
                        number
                            .parse()
                            .ok()
                            .filter(|n| (0.0..=1000.0).contains(n))
                            .context("a queue is bytes or, as 1.5bdp, rate × rtt")?,
                    ),
                    None => Queue::Bytes(
                        quantity(value, 1000.0)
                            .context("a queue is bytes (125k) or, as 1.5bdp, rate × rtt")?,
                    ),
                }
            }
            "loss" => self.loss = share(value)?,
            "burst-loss" => {
                self.burst_loss = share(value)?;
                ensure!(self.burst_loss <= 0.9, "burst-loss is at most 90%");
            }
            "burst-length" => {
                self.burst_length = value
                    .parse()
                    .ok()
                    .filter(|n| (1.0..=1e6).contains(n))
                    .context("a mean number of frames, at least 1")?;
            }
            "duplicate" => self.duplicate = share(value)?,
            "reorder" => self.reorder = share(value)?,
            "reorder-delay" => self.reorder_delay = time(value)?,
            _ => bail!("there is no such setting; there are {KEYS}"),
        }
        Ok(())
    }

    fn direction(&self) -> DirectionConfig {
        let product = self.rate as f64 / 8.0 * self.rtt.as_secs_f64();
        let queue_bytes = match self.queue {
            Queue::Bytes(bytes) => bytes,
            // Sixteen full frames even where rate × rtt is less: no real modem has less.
            Queue::DelayProducts(factor) => ((product * factor) as u64).max(16 * FULL_FRAME),
        };
        DirectionConfig {
            rate_bps: self.rate,
            delay_ms: self.rtt.as_secs_f64() * 500.0,
            queue_bytes,
            loss: self.loss,
            burst_loss: self.burst_loss,
            burst_length: self.burst_length,
            duplicate: self.duplicate,
            reorder: self.reorder,
            reorder_delay_ms: self.reorder_delay.as_secs_f64() * 1000.0,
        }
    }
}

impl FromStr for LineConfig {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<LineConfig> {
        let (mut up, mut down, mut seed) = (DEFAULTS, DEFAULTS, 1);
        let settings: Vec<(&str, &str)> = text
            .split(',')
            .map(str::trim)
            .filter(|setting| !setting.is_empty())
            .map(|setting| {
                setting
                    .split_once('=')
                    .with_context(|| format!("{setting:?} is not of the form key=value"))
            })
            .collect::<Result<_>>()?;
        // What is said for one direction holds whatever the order.
        for one_direction in [false, true] {
            for (key, value) in &settings {
                let result = match (key.split_once('.'), one_direction) {
                    (None, false) => match *key {
                        "seed" => value
                            .parse()
                            .map(|value| seed = value)
                            .map_err(|_| anyhow!("a seed is a whole number")),
                        "rtt" => time(value).map(|rtt| (up.rtt, down.rtt) = (rtt, rtt)),
                        _ => up.set(key, value).and_then(|()| down.set(key, value)),
                    },
                    (Some(("up", key)), true) => up.set(key, value),
                    (Some(("down", key)), true) => down.set(key, value),
                    (Some(("up" | "down", _)), false) | (None, true) => Ok(()),
                    (Some(_), _) => Err(anyhow!("a direction is up or down")),
                };
                result.with_context(|| format!("{key}={value}"))?;
            }
        }
        Ok(LineConfig {
            up: up.direction(),
            down: down.direction(),
            seed,
        })
    }
}

/// A number with k, M or G.
fn quantity(text: &str, thousand: f64) -> Result<u64> {
    let (number, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], thousand),
        Some((at, 'M')) => (&text[..at], thousand * thousand),
        Some((at, 'G')) => (&text[..at], thousand * thousand * thousand),
        _ => (text, 1.0),
    };
    let number: f64 = number.parse().ok().context("not a number with k, M or G")?;
    ensure!(number.is_finite() && number >= 0.0, "it cannot be negative");
    Ok((number * factor) as u64)
}

/// A share as `0.5%` or `0.005`.
fn share(text: &str) -> Result<f64> {
    let value = match text.strip_suffix('%') {
        Some(percent) => percent.parse::<f64>().map(|value| value / 100.0),
        None => text.parse(),
    };
    value
        .ok()
        .filter(|value| (0.0..=1.0).contains(value))
        .context("a share is 0% to 100%")
}

/// A time with us, ms or s.
fn time(text: &str) -> Result<Duration> {
    let (number, factor) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1e-3)
    } else if let Some(number) = text.strip_suffix("us") {
        (number, 1e-6)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1.0)
    } else {
        bail!("a time ends in us, ms or s: 100ms");
    };
    let number: f64 = number
        .parse()
        .ok()
        .context("a time is a number and us, ms or s: 100ms")?;
    ensure!(
        (0.0..=60.0).contains(&(number * factor)),
        "a time is between 0 and 60s"
    );
    Ok(Duration::from_secs_f64(number * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_documented_line() {
        let line = LineConfig::default();
        assert_eq!(line.up, line.down);
        assert_eq!(
            (line.up.rate_bps, line.up.delay_ms, line.up.loss),
            (10_000_000, 50.0, 0.005)
        );
        assert_eq!((line.up.queue_bytes, line.seed), (125_000, 1));
        assert_eq!(line.to_string(), "10 Mbit/s · 100 ms · 0.5% loss");
    }

    #[test]
    fn settings_are_read_for_both_or_one_direction() {
        let line: LineConfig =
            "up.rate=512k, rate=8M,rtt=600ms,loss=1%,down.loss=0.02,seed=7,queue=2bdp,up.queue=64k"
                .parse()
                .unwrap();
        assert_eq!((line.up.rate_bps, line.down.rate_bps), (512_000, 8_000_000));
        assert_eq!((line.up.loss, line.down.loss), (0.01, 0.02));
        assert_eq!(
            (line.up.queue_bytes, line.down.queue_bytes),
            (64_000, 1_200_000)
        );
        assert_eq!((line.down.delay_ms, line.seed), (300.0, 7));
        assert_eq!(line.rtt(), Duration::from_millis(600));
        assert_eq!(
            line.to_string(),
            "8 Mbit/s down, 512 kbit/s up · 600 ms · 2% down, 1% up lost"
        );
    }

    #[test]
    fn a_short_delay_product_still_has_a_queue() {
        let line: LineConfig = "rate=64k,rtt=10ms".parse().unwrap();
        assert_eq!(line.up.queue_bytes, 16 * FULL_FRAME);
    }

    #[test]
    fn mistakes_name_the_setting_and_the_remedy() {
        for (text, part) in [
            ("rate", "key=value"),
            ("rate=fast", "10M"),
            ("rate=0", "1k"),
            ("loss=200%", "0% to 100%"),
            ("rtt=100", "ms or s"),
            ("rtt=90s", "60s"),
            ("queue=-1", "bytes"),
            ("seed=x", "whole number"),
            ("speed=1", "rate, rtt"),
            ("left.rate=1M", "up or down"),
            ("burst-length=0.5", "at least 1"),
        ] {
            let error = format!("{:#}", text.parse::<LineConfig>().unwrap_err());
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
