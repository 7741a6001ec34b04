//! The real-time clock and its CMOS memory (Motorola MC146818A data sheet), showing UTC.
//!
//! The clock is the host's plus an offset that the guest sets. Alarm, update and periodic interrupts are there; the square
//! wave output and daylight saving are not.

mod calendar;

use calendar::DateTime;

/// Register numbers.
mod register {
    pub const SECOND: u8 = 0x00;
    pub const SECOND_ALARM: u8 = 0x01;
    pub const MINUTE: u8 = 0x02;
    pub const MINUTE_ALARM: u8 = 0x03;
    pub const HOUR: u8 = 0x04;
    pub const HOUR_ALARM: u8 = 0x05;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0A;
    pub const B: u8 = 0x0B;
    pub const C: u8 = 0x0C;
    pub const D: u8 = 0x0D;
}

/// Where the century is, as the FADT says.
pub const CENTURY: u8 = 0x32;

/// Register A: update in progress; it is set this long before the second ends.
const UPDATE_IN_PROGRESS: u8 = 0x80;
const UPDATE_AHEAD_NS: u64 = 244_000;

/// Register B.
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
/// Flags in register C and their enable bits in register B.
const PERIODIC: u8 = 0x40;
const ALARM: u8 = 0x20;
const UPDATE: u8 = 0x10;
const ANY_INTERRUPT: u8 = 0x80;

/// Register D: time and memory are valid.
const VALID: u8 = 0x80;

/// The end of the year 9999; a host that says more is not believed.
const LATEST: u64 = 253_402_300_799;

const SECOND_NS: u64 = 1_000_000_000;
/// Seconds of a day.
const DAY: i64 = 86_400;
/// Alarm fields from here on match everything.
const ANY: u8 = 0xC0;

/// The clock and its memory.
#[derive(Clone, Debug)]
pub struct Rtc {
    /// The host's clock at its time zero, in seconds since 1970.
    boot_seconds: i64,
    /// What the guest's clock is ahead of the host's, in seconds.
    offset: i64,
    /// While the guest sets the clock: what it shows.
    held: Option<DateTime>,
    index: u8,
    alarm: [u8; 3],
    a: u8,
    b: u8,
    flags: u8,
    /// The second (of the guest's clock) up to which updates and alarms have been noted.
    noted: i64,
    /// When the next period ends.
    period_end_ns: Option<u64>,
    memory: [u8; 128],
}

impl Rtc {
    /// A clock that shows the host's: `boot_unix_seconds` at time zero.
    pub fn new(boot_unix_seconds: u64) -> Self {
        let boot_seconds = boot_unix_seconds.min(LATEST) as i64;
        Self {
            boot_seconds,
            offset: 0,
            held: None,
            index: 0,
            alarm: [0; 3],
            a: 0x26,
            b: B_24_HOURS,
            flags: 0,
            noted: boot_seconds,
            period_end_ns: None,
            memory: [0; 128],
        }
    }

    fn seconds(&self, now_ns: u64) -> i64 {
        let since_boot = (now_ns / SECOND_NS) as i64;
        self.boot_seconds
            .saturating_add(self.offset)
            .saturating_add(since_boot)
    }

    fn shown(&self, now_ns: u64) -> DateTime {
        self.held
            .unwrap_or_else(|| DateTime::from_unix(self.seconds(now_ns)))
    }

    /// Writes the index port. Bit 7, which masks NMIs on a PC, has no meaning.
    pub fn write_index(&mut self, value: u8) {
        self.index = value & 0x7F;
    }

    /// Reads the data port.
    pub fn read_data(&mut self, now_ns: u64) -> u8 {
        let time = self.shown(now_ns);
        match self.index {
            register::SECOND => self.encode(time.second),
            register::MINUTE => self.encode(time.minute),
            register::HOUR => self.encode_hour(time.hour),
            register::SECOND_ALARM => self.alarm[0],
            register::MINUTE_ALARM => self.alarm[1],
            register::HOUR_ALARM => self.alarm[2],
            register::WEEKDAY => self.encode(time.weekday()),
            register::DAY => self.encode(time.day),
            register::MONTH => self.encode(time.month),
            register::YEAR => self.encode(time.year.rem_euclid(100) as u8),
            CENTURY => bcd(time.year.div_euclid(100).rem_euclid(100) as u8),
            register::A => {
                let updating =
                    self.b & B_SET == 0 && now_ns % SECOND_NS >= SECOND_NS - UPDATE_AHEAD_NS;
                self.a | if updating { UPDATE_IN_PROGRESS } else { 0 }
            }
            register::B => self.b,
            register::C => {
                self.service(now_ns);
                let any = if self.interrupt() { ANY_INTERRUPT } else { 0 };
                core::mem::take(&mut self.flags) | any
            }
            register::D => VALID,
            index => self.memory[usize::from(index & 0x7F)],
        }
    }

    /// Writes the data port.
    pub fn write_data(&mut self, value: u8, now_ns: u64) {
        self.service(now_ns);
        match self.index {
            register::SECOND_ALARM => self.alarm[0] = value,
            register::MINUTE_ALARM => self.alarm[1] = value,
            register::HOUR_ALARM => self.alarm[2] = value,
            register::A => {
                self.a = value & !UPDATE_IN_PROGRESS;
                self.start_period(now_ns);
            }
            register::B => self.write_b(value, now_ns),
            register::C | register::D => {}
            register::SECOND..=register::YEAR | CENTURY => self.set_field(value, now_ns),
            index => self.memory[usize::from(index & 0x7F)] = value,
        }
    }

    fn write_b(&mut self, value: u8, now_ns: u64) {
        let was = self.b;
        if value & B_SET != 0 && was & B_SET == 0 {
            self.held = Some(self.shown(now_ns));
        }
        // Setting the clock disables the update interrupt.
        self.b = if value & B_SET != 0 {
            value & !UPDATE
        } else {
            value
        };
        if value & B_SET == 0
            && let Some(time) = self.held.take()
        {
            self.set_time(time, now_ns);
        }
        if (value ^ was) & PERIODIC != 0 {
            self.start_period(now_ns);
        }
    }

    fn set_field(&mut self, value: u8, now_ns: u64) {
        let mut time = self.shown(now_ns);
        let number = self.decode(value);
        match self.index {
            register::SECOND => time.second = number.min(59),
            register::MINUTE => time.minute = number.min(59),
            register::HOUR => time.hour = self.decode_hour(value).min(23),
            register::DAY => time.day = number.clamp(1, 31),
            register::MONTH => time.month = number.clamp(1, 12),
            register::YEAR => {
                time.year = time.year.div_euclid(100) * 100 + i64::from(number.min(99));
            }
            CENTURY => {
                let century = i64::from(unbcd(value).min(99));
                time.year = century * 100 + time.year.rem_euclid(100);
            }
            _ => return, // the day of the week follows from the date
        }
        if self.held.is_some() {
            self.held = Some(time);
        } else {
            self.set_time(time, now_ns);
        }
    }

    fn set_time(&mut self, time: DateTime, now_ns: u64) {
        self.offset += time.to_unix() - self.seconds(now_ns);
        self.noted = self.seconds(now_ns);
    }

    fn encode(&self, number: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            number
        } else {
            bcd(number)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.b & B_BINARY != 0 {
            value
        } else {
            unbcd(value)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.b & B_24_HOURS != 0 {
            return self.decode(value);
        }
        let afternoon = if value & 0x80 != 0 { 12 } else { 0 };
        self.decode(value & 0x7F) % 12 + afternoon
    }

    /// The second of the day of the next alarm at or after `start`, a second of a day; none if the alarm never matches. The
    /// fields are looked for one after the other, so that no setting takes more than a few dozen steps.
    fn alarm_in_day(&self, start: i64) -> Option<i64> {
        let [second, minute, hour] = self.alarm;
        let field = |value: u8, number: u8| (value < ANY).then_some(i64::from(number));
        let second = field(second, self.decode(second));
        let minute = field(minute, self.decode(minute));
        let hour = field(hour, self.decode_hour(hour));
        // The first value at or after `from` that the field takes, below `limit`.
        let next = |field: Option<i64>, from: i64, limit: i64| {
            let value = field.unwrap_or(from);
            (from..limit).contains(&value).then_some(value)
        };
        let (from_hour, from_minute, from_second) = (start / 3600, start / 60 % 60, start % 60);
        // In this minute, in a later one of this hour, in a later hour.
        if let Some(hour) = next(hour, from_hour, 24) {
            let (from_minute, from_second) = if hour == from_hour {
                (from_minute, from_second)
            } else {
                (0, 0)
            };
            if let Some(at) = next(minute, from_minute, 60) {
                let from_second = if at == from_minute { from_second } else { 0 };
                if let Some(second) = next(second, from_second, 60) {
                    return Some(hour * 3600 + at * 60 + second);
                }
                if let (Some(minute), Some(second)) =
                    (next(minute, at + 1, 60), next(second, 0, 60))
                {
                    return Some(hour * 3600 + minute * 60 + second);
                }
            }
        }
        let hour = next(hour, from_hour + 1, 24)?;
        Some(hour * 3600 + next(minute, 0, 60)? * 60 + next(second, 0, 60)?)
    }

    /// The next second after `after` for which the alarm is.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let at = after.saturating_add(1);
        let (day, second) = (at.div_euclid(DAY), at.rem_euclid(DAY));
        match self.alarm_in_day(second) {
            Some(second) => Some(day.saturating_mul(DAY).saturating_add(second)),
            None => self
                .alarm_in_day(0)
                .map(|second| (day + 1).saturating_mul(DAY).saturating_add(second)),
        }
    }

    /// Length of the periodic interrupt's period, in nanoseconds; none if it is off.
    fn period_ns(&self) -> Option<u64> {
        let select = match self.a & 0xF {
            0 => return None,
            select @ 1..=2 => select + 7,
            select => select,
        };
        Some((SECOND_NS << (select - 1)) / 32_768)
    }

    fn start_period(&mut self, now_ns: u64) {
        self.period_end_ns = match self.period_ns() {
            Some(period) if self.b & PERIODIC != 0 => Some(now_ns.saturating_add(period)),
            _ => None,
        };
    }

    /// Notes what has happened up to `now_ns`.
    pub fn service(&mut self, now_ns: u64) {
        if let (Some(end), Some(period)) = (self.period_end_ns, self.period_ns())
            && end <= now_ns
        {
            self.flags |= PERIODIC;
            let missed = (now_ns - end) / period;
            self.period_end_ns = Some(end.saturating_add((missed + 1).saturating_mul(period)));
        }
        let seconds = self.seconds(now_ns);
        if self.b & B_SET == 0 && seconds > self.noted {
            self.flags |= UPDATE;
            // While the alarm's flag is set already, there is nothing to find out.
            if self.flags & ALARM == 0
                && self.next_alarm(self.noted).is_some_and(|at| at <= seconds)
            {
                self.flags |= ALARM;
            }
            self.noted = seconds;
        }
    }

    /// When the next enabled interrupt may come, if its flag is not set already.
    pub fn deadline_ns(&self) -> Option<u64> {
        let waits_for = self.b & !self.flags;
        let second_ns = |second: i64| {
            let since_boot = second
                .saturating_sub(self.boot_seconds)
                .saturating_sub(self.offset);
            u64::try_from(since_boot)
                .unwrap_or(0)
                .saturating_mul(SECOND_NS)
        };
        let periodic = self.period_end_ns.filter(|_| waits_for & PERIODIC != 0);
        if self.b & B_SET != 0 {
            return periodic;
        }
        let update = (waits_for & UPDATE != 0).then(|| second_ns(self.noted + 1));
        let alarm = if waits_for & ALARM != 0 {
            self.next_alarm(self.noted).map(second_ns)
        } else {
            None
        };
        [periodic, update, alarm].into_iter().flatten().min()
    }

    /// The interrupt line.
    pub fn interrupt(&self) -> bool {
        self.flags & self.b & (PERIODIC | ALARM | UPDATE) != 0
    }
}

fn bcd(number: u8) -> u8 {
    number / 10 * 16 + number % 10
}

fn unbcd(value: u8) -> u8 {
    (value >> 4).min(9) * 10 + (value & 0xF).min(9)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2023-11-14 22:13:20 UTC, a Tuesday.
    const BOOT: u64 = 1_700_000_000;
    const S: u64 = SECOND_NS;

    fn read(rtc: &mut Rtc, index: u8, now: u64) -> u8 {
        rtc.write_index(index);
        rtc.read_data(now)
    }

    fn write(rtc: &mut Rtc, index: u8, value: u8, now: u64) {
        rtc.write_index(index);
        rtc.write_data(value, now);
    }

    #[test]
    fn the_clock_shows_the_hosts_in_both_forms() {
        let mut rtc = Rtc::new(BOOT);
        let bcd = [0, 2, 4, 6, 7, 8, 9, CENTURY].map(|index| read(&mut rtc, index, 7 * S));
        assert_eq!(bcd, [0x27, 0x13, 0x22, 3, 0x14, 0x11, 0x23, 0x20]);
        write(&mut rtc, 0xB, B_BINARY, 0);
        assert_eq!(read(&mut rtc, 0, 7 * S), 27);
        assert_eq!(read(&mut rtc, 4, 7 * S), 0x80 | 10, "ten in the evening");
        assert_eq!(read(&mut rtc, 0xD, 0), 0x80);
    }

    #[test]
    fn an_update_is_announced() {
        let mut rtc = Rtc::new(BOOT);
        assert_eq!(read(&mut rtc, 0xA, 5 * S - 244_001), 0x26);
        assert_eq!(read(&mut rtc, 0xA, 5 * S - 244_000), 0xA6);
        assert_eq!(read(&mut rtc, 0xA, 5 * S), 0x26);
    }

    #[test]
    fn the_guest_sets_it() {
        let mut rtc = Rtc::new(BOOT);
        write(&mut rtc, 0xB, B_SET | B_24_HOURS | B_BINARY, 0);
        for (index, value) in [(0, 50), (2, 59), (4, 23), (7, 31), (8, 12), (9, 29)] {
            write(&mut rtc, index, value, 0);
        }
        assert_eq!(read(&mut rtc, 0, 30 * S), 50, "it stands still");
        write(&mut rtc, 0xB, B_24_HOURS | B_BINARY, 30 * S);
        assert_eq!(read(&mut rtc, 0, 39 * S), 59);
        let next = [9, 8, 7, 4, 2, 0].map(|index| read(&mut rtc, index, 40 * S));
        assert_eq!(next, [30, 1, 1, 0, 0, 0]);
        assert_eq!(read(&mut rtc, CENTURY, 40 * S), 0x20);
    }

    #[test]
    fn alarms_and_updates_interrupt_when_enabled() {
        let mut rtc = Rtc::new(BOOT);
        for (index, value) in [(1, 0x25), (3, 0x13), (5, 0x22)] {
            write(&mut rtc, index, value, 0);
        }
        assert_eq!(rtc.deadline_ns(), None);
        write(&mut rtc, 0xB, B_24_HOURS | ALARM, 0);
        assert_eq!(rtc.deadline_ns(), Some(5 * S));
        rtc.service(5 * S - 1);
        assert!(!rtc.interrupt());
        rtc.service(5 * S);
        assert!(rtc.interrupt());
        assert_eq!(rtc.deadline_ns(), None);
        assert_eq!(read(&mut rtc, 0xC, 5 * S), ANY_INTERRUPT | ALARM | UPDATE);
        assert!(!rtc.interrupt());
        assert_eq!(rtc.deadline_ns(), Some((86400 + 5) * S), "tomorrow again");
        write(&mut rtc, 0xB, B_24_HOURS | UPDATE, 5 * S);
        assert_eq!(rtc.deadline_ns(), Some(6 * S));
        for index in [1, 3, 5] {
            write(&mut rtc, index, 0xFF, 5 * S);
        }
        write(&mut rtc, 0xB, B_24_HOURS | ALARM, 5 * S);
        assert_eq!(rtc.deadline_ns(), Some(6 * S), "every second");
    }

    #[test]
    fn periods_end() {
        let mut rtc = Rtc::new(BOOT);
        write(&mut rtc, 0xB, B_24_HOURS | PERIODIC, 0);
        assert_eq!(rtc.deadline_ns(), Some(976_562), "1024 Hz");
        rtc.service(10 * 976_562);
        assert!(rtc.interrupt());
        assert_eq!(read(&mut rtc, 0xC, 10 * 976_562), ANY_INTERRUPT | PERIODIC);
        assert_eq!(rtc.deadline_ns(), Some(11 * 976_562));
    }

    #[test]
    fn memory_is_kept() {
        let mut rtc = Rtc::new(BOOT);
        write(&mut rtc, 0x8F, 0x0A, 0);
        assert_eq!(read(&mut rtc, 0x0F, 0), 0x0A);
    }

    #[test]
    fn an_alarm_that_never_comes_costs_nothing() {
        let mut rtc = Rtc::new(BOOT);
        // Second 79 of any minute: there is none.
        for (index, value) in [(1, 0x7F), (3, 0xFF), (5, 0xFF)] {
            write(&mut rtc, index, value, 0);
        }
        write(&mut rtc, 0xB, B_24_HOURS | ALARM, 0);
        let start = std::time::Instant::now();
        for _ in 0..100_000 {
            assert_eq!(rtc.deadline_ns(), None);
        }
        // Looking at each second of a day takes more than a minute; this, milliseconds.
        assert!(start.elapsed().as_secs() < 20);
    }

    proptest! {
        /// Against a clock that is asked second by second.
        #[test]
        fn alarms_are_found(alarm in any::<[u8; 3]>(), narrow in any::<[bool; 3]>(), b in any::<u8>(), start in 0_i64..DAY) {
            let mut rtc = Rtc::new(BOOT);
            rtc.b = b & (B_BINARY | B_24_HOURS);
            for (index, value) in alarm.into_iter().enumerate() {
                rtc.alarm[index] = if narrow[index] { value % 0x24 } else { value };
            }
            let matches = |at: i64| {
                let time = DateTime::from_unix(at);
                let [second, minute, hour] = rtc.alarm;
                (second >= ANY || rtc.decode(second) == time.second)
                    && (minute >= ANY || rtc.decode(minute) == time.minute)
                    && (hour >= ANY || rtc.decode_hour(hour) == time.hour)
            };
            let after = BOOT as i64 + start;
            let expected = (after + 1..=after + DAY).find(|at| matches(*at));
            prop_assert_eq!(rtc.next_alarm(after), expected);
        }

        #[test]
        fn any_access_is_survived(
            ops in proptest::collection::vec(any::<(bool, u8, u8, u32)>(), 1..200),
            boot in any::<u64>(),
        ) {
            let mut rtc = Rtc::new(boot);
            let mut now = 0_u64;
            for (is_write, index, value, step) in ops {
                now += u64::from(step);
                let index = if index & 0x40 != 0 { index & 0xF } else { index };
                if is_write { write(&mut rtc, index, value, now) } else { let _ = read(&mut rtc, index, now); }
                rtc.service(now);
                if let Some(deadline) = rtc.deadline_ns() {
                    prop_assert!(deadline > now, "{deadline} is not after {now}");
                }
            }
        }
    }
}
