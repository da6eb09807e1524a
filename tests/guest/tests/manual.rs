//! The commands of pages of the manual, one after the other.

use ublk_bpf_guest::leftover::nothing_is_left;
use ublk_bpf_guest::openmetrics::Families;
use ublk_bpf_guest::run;

const OPERATIONS: &str = include_str!("../../../docs/operations.md");
const OBSERVABILITY: &str = include_str!("../../../docs/observability.md");

/// The commands of the blocks for a console: each from its `$` to the next.
fn commands(page: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    for block in page.split("```console\n").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        for line in block.lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push(command.to_owned()),
                (None, Some(command)) => *command = format!("{command}\n{line}"),
                (None, None) => panic!("{line:?} belongs to no command"),
            }
        }
    }
    commands
}

/// Runs them; returns each with what it printed.
fn performed(page: &str) -> Vec<(String, String)> {
    let commands = commands(page).into_iter();
    let done = commands.map(|command| {
        let said = run("sh", &["-c", &command]);
        (command, said)
    });
    done.collect()
}

/// What the commands printed that begin like this.
fn said<'a>(done: &'a [(String, String)], start: &str) -> Vec<&'a str> {
    let meant = done.iter().filter(|(command, _)| command.starts_with(start));
    meant.map(|(_, said)| said.as_str()).collect()
}

#[test]
fn the_page_of_operations_works_as_it_stands() {
    std::fs::create_dir_all("/srv").unwrap_or_else(|e| panic!("{e}"));
    run("mount", &["-t", "tmpfs", "tmpfs", "/srv"]);
    let done = performed(OPERATIONS);
    assert!(done.len() > 20, "{done:#?}");
    let of = |start| said(&done, start);
    assert!(!of("ublk-bpf check")[0].contains("MISSING"));
    assert!(of("ublk-bpf run --config")[0].contains(" (data) is ready: "));
    let [first, second] = of("ublk-bpf run --recover --all")[..] else {
        panic!("{done:#?}")
    };
    assert!(first.contains(" (data) is ready: "), "{first}");
    assert_eq!(second, "no device waits for a server\n");
    run("umount", &["/srv"]);
    nothing_is_left();
}

/// The hits of all reads, in per cent.
fn hits(stats: &str) -> f64 {
    let line = stats
        .lines()
        .find_map(|line| line.trim().strip_prefix("hits of all reads"));
    let words = line.into_iter().flat_map(str::split_whitespace);
    let numbers: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    *numbers
        .first()
        .unwrap_or_else(|| panic!("no hits of all reads in {stats}"))
}

#[test]
fn the_page_of_observability_works_as_it_stands() {
    // Where `cgroup-tiers.o` is.
    std::env::set_current_dir("/root/policies").unwrap_or_else(|e| panic!("{e}"));
    let done = performed(OBSERVABILITY);
    let [table, json] = said(&done, "ublk-bpf stats 0")[..] else {
        panic!("{done:#?}")
    };
    assert!(table.starts_with("since start "), "{table}");
    for words in [" p50 ", " p99\n", "\n    passthrough "] {
        assert!(table.contains(words), "no {words:?} in {table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(json.contains("\"schema\": 1"), "{json}");
    for (map, field) in [
        ("latencies", "log2_ns"),
        ("sizes", "log2_bytes"),
        ("decisions", "never_written"),
    ] {
        let command = format!("bpftool map dump pinned /sys/fs/bpf/ublk-bpf/ublkb0/{map}");
        assert!(said(&done, &command)[0].contains(field), "{map}");
    }
    let [alone, with_backups, mended] = said(&done, "ublk-bpf stats 2")[..] else {
        panic!("{done:#?}")
    };
    assert!(hits(alone) > hits(with_backups) + 5.0, "{alone}\n{with_backups}");
    assert!(mended.contains("\n  bulk                  3072\n"), "{mended}");
    let quota = said(&done, "ublk-bpf quota list 2")[0];
    let of = quota.lines().nth(1).unwrap_or_else(|| panic!("{quota}"));
    let [cgroup, _, bandwidth, share, used, delayed, refused] = of.split_whitespace().collect::<Vec<_>>()[..]
    else {
        panic!("{quota}")
    };
    assert_eq!(
        [cgroup, bandwidth, share, used],
        ["/backup", "20M", "832K", "832K"]
    );
    assert!(delayed != "0" && refused != "0", "{quota}");
    let metrics = Families::parse(said(&done, "wget")[0]);
    assert_eq!(metrics.family("ublk_bpf_requests").kind, "counter");
    nothing_is_left();
}
