//! Seconds since 1970 to the clock's fields and back, in the proleptic Gregorian calendar, UTC.

/// A point in time as the clock shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    /// Full year.
    pub year: i64,
    /// 1–12.
    pub month: u8,
    /// 1–31.
    pub day: u8,
    /// 0–23.
    pub hour: u8,
    /// 0–59.
    pub minute: u8,
    /// 0–59.
    pub second: u8,
}

const DAY: i64 = 86400;

impl DateTime {
    /// Of seconds since 1970-01-01 00:00 UTC.
    pub fn from_unix(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Count from 0000-03-01, so that leap days end a year and 400 years have 146097 days.
        let days = days + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: day as u8,
            hour: (rest / 3600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Seconds since 1970. Fields out of range count on: the 40th of a month lies in the next one.
    pub fn to_unix(self) -> i64 {
        let months = self.year * 12 + i64::from(self.month) - 1;
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        let year = year - i64::from(month <= 2);
        let month = if month > 2 { month - 3 } else { month + 9 };
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }

    /// Day of the week, Sunday being 1.
    pub fn weekday(self) -> u8 {
        let days = self.to_unix().div_euclid(DAY);
        ((days + 4).rem_euclid(7) + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        let time = DateTime::from_unix(951_782_400);
        assert_eq!((time.year, time.month, time.day), (2000, 2, 29));
        assert_eq!(time.weekday(), 3, "a Tuesday");
        let time = DateTime::from_unix(1_700_000_000);
        let shown = (
            time.year,
            time.month,
            time.day,
            time.hour,
            time.minute,
            time.second,
        );
        assert_eq!(shown, (2023, 11, 14, 22, 13, 20));
        assert_eq!(DateTime::from_unix(0).weekday(), 5, "a Thursday");
    }

    #[test]
    fn there_and_back() {
        for seconds in (-5_000_000_000_i64..10_000_000_000).step_by(12_345_677) {
            assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
        }
    }
}
