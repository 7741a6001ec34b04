//! The options that say how guest and services share the box's CPUs, as lines of its `outpost.toml`.

/// Left out: what the box does by itself.
#[derive(Debug, Default, clap::Args)]
#[group(id = "sharing", multiple = true, conflicts_with = "config")]
pub struct Sharing {
    /// How the guest's virtual CPUs are scheduled (docs/scheduler.md)
    #[arg(long, value_name = "POLICY", value_parser = ["fair", "balance", "gang", "placed"])]
    policy: Option<String>,
    /// The guest's nice value
    #[arg(long, value_name = "NICE", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    nice: Option<i8>,
    /// A CPU that the guest may run on; may be given several times
    #[arg(long, value_name = "CPU", value_parser = clap::value_parser!(u8).range(0..=63))]
    guest_cpu: Vec<u8>,
    /// The nice value of the box's services
    #[arg(long, value_name = "NICE", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-20..=19))]
    services_nice: Option<i8>,
    /// For measurement: a service that computes all it can on this CPU; may be given several times
    #[arg(long, value_name = "CPU", value_parser = clap::value_parser!(u8).range(0..=63))]
    load: Vec<u8>,
}

impl Sharing {
    /// Lines for `[guest]`.
    pub fn guest(&self) -> String {
        let policy = self.policy.iter();
        let nice = self.nice.iter();
        let cpus = Some(&self.guest_cpu).filter(|cpus| !cpus.is_empty());
        policy
            .map(|policy| format!("policy = \"{policy}\"\n"))
            .chain(nice.map(|nice| format!("nice = {nice}\n")))
            .chain(cpus.map(|cpus| format!("cpus = {cpus:?}\n")))
            .collect()
    }

    /// The table `[services]`, if there is anything to say in it.
    pub fn services(&self) -> String {
        let mut text = String::new();
        if let Some(nice) = self.services_nice {
            text.push_str(&format!("nice = {nice}\n"));
        }
        if !self.load.is_empty() {
            text.push_str(&format!("load = {:?}\n", self.load));
        }
        match text.is_empty() {
            true => text,
            false => format!("\n[services]\n{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use outpost_config::{Config, Policy};

    use super::super::{Args, default_config};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Args,
    }

    #[test]
    fn the_options_come_to_the_configuration() {
        let words = "x --policy gang --nice -5 --guest-cpu 1 --guest-cpu 0 --services-nice 10 --load 0 --load 1";
        let line = Line::try_parse_from(words.split(' ')).unwrap();
        let config = Config::parse(&default_config(Some("probe"), &line.arguments, "").unwrap());
        let config = config.unwrap();
        let guest = config.guest.unwrap();
        assert_eq!((guest.policy, guest.nice), (Policy::Gang, -5));
        assert_eq!((guest.cpus, line.arguments.cpus()), (vec![1, 0], 2));
        assert_eq!(
            (config.services.nice, config.services.load),
            (10, vec![0, 1])
        );

        let line = Line::try_parse_from(["x"]).unwrap();
        let text = default_config(Some("probe"), &line.arguments, "").unwrap();
        assert!(
            !text.contains("[services]") && !text.contains("policy") && !text.contains("cpus = ["),
            "{text}"
        );
        for (words, cpus) in [("x --vcpus 2", 3), ("x --vcpus 2 --cpus 2", 2)] {
            let line = Line::try_parse_from(words.split(' ')).unwrap();
            assert_eq!(line.arguments.cpus(), cpus, "{words}");
        }
    }

    #[test]
    fn what_the_box_would_refuse_is_refused() {
        for words in [
            "x --policy greedy",
            "x --nice 20",
            "x --services-nice -21",
            "x --load 64",
            "x --guest-cpu 64",
            "x --nice 1 --config a",
        ] {
            assert!(Line::try_parse_from(words.split(' ')).is_err(), "{words}");
        }
    }
}
