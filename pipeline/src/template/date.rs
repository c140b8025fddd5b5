//! Dates for `strftime_now`, in universal time.

/// Seconds since the beginning of 1970, universal time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixSeconds(pub u64);

/// A conversion that is not known.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("strftime_now does not know the conversion {0:?}")]
pub(super) struct UnknownConversion(String);

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
/// Past the year 9999 formats no longer fit; later times are taken as its end.
const SECONDS_MAX: u64 = 253_402_300_799;

/// `time` written as `format` says, with the conversions of C that templates use.
pub(super) fn format(time: UnixSeconds, format: &str) -> Result<String, UnknownConversion> {
    let seconds = time.0.min(SECONDS_MAX);
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS[month as usize - 1];
    let weekday = WEEKDAYS[(days % 7) as usize];
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let part = match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                return Err(UnknownConversion(other.map_or("%".to_owned(), |c| format!("%{c}"))));
            }
        };
        text.push_str(&part);
    }
    Ok(text)
}

/// Year, month and day of the month of the day that many days after the first of January 1970, by walking the
/// calendar: 400 years of 146,097 days, then years, then months.
fn civil(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970 + 400 * (days / 146_097);
    let mut left = days % 146_097;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::{UnixSeconds, UnknownConversion, format};

    #[test]
    fn known_moments() {
        for (seconds, expected) in [
            (0, "Thursday 1970-01-01 00:00:00"),
            (951_782_399, "Monday 2000-02-28 23:59:59"),
            (951_868_800, "Wednesday 2000-03-01 00:00:00"),
            (1_735_689_599, "Tuesday 2024-12-31 23:59:59"),
            (4_107_542_400, "Monday 2100-03-01 00:00:00"),
            (u64::MAX, "Friday 9999-12-31 23:59:59"),
        ] {
            assert_eq!(format(UnixSeconds(seconds), "%A %F %T").as_deref(), Ok(expected));
        }
    }

    #[test]
    fn an_unknown_conversion_is_named() {
        assert_eq!(format(UnixSeconds(0), "%d %Q"), Err(UnknownConversion("%Q".to_owned())));
        assert_eq!(format(UnixSeconds(0), "100%"), Err(UnknownConversion("%".to_owned())));
    }
}
