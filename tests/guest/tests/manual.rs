//! The commands of `docs/operations.md`, one after the other.

use ublk_bpf_guest::leftover::nothing_is_left;
use ublk_bpf_guest::run;

const PAGE: &str = include_str!("../../../docs/operations.md");

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

#[test]
fn the_page_of_operations_works_as_it_stands() {
    std::fs::create_dir_all("/srv").unwrap_or_else(|e| panic!("{e}"));
    run("mount", &["-t", "tmpfs", "tmpfs", "/srv"]);
    let commands = commands(PAGE);
    assert!(commands.len() > 20, "{commands:#?}");
    let said: Vec<String> = commands
        .iter()
        .map(|command| run("sh", &["-c", command]))
        .collect();
    let of = |start: &str| {
        let found = commands
            .iter()
            .zip(&said)
            .filter(|(command, _)| command.starts_with(start));
        found.map(|(_, said)| said.as_str()).collect::<Vec<_>>()
    };
    assert!(!of("ublk-bpf check")[0].contains("MISSING"));
    assert!(of("ublk-bpf run --config")[0].contains(" (data) is ready: "));
    let [first, second] = of("ublk-bpf run --recover --all")[..] else {
        panic!("{commands:#?}")
    };
    assert!(first.contains(" (data) is ready: "), "{first}");
    assert_eq!(second, "no device waits for a server\n");
    run("umount", &["/srv"]);
    nothing_is_left();
}
