//! What a user is told: help worth reading, one line for each mistake, and the right exit status.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cli_tests::{refused, run, run_in, run_into, wrong_usage};

fn has_ublk() -> bool {
    Path::new("/dev/ublk-control").exists()
}

#[test]
fn every_command_explains_itself() {
    let commands: [&[&str]; 23] = [
        &[],
        &["run"],
        &["list"],
        &["show"],
        &["stats"],
        &["check"],
        &["features"],
        &["policy"],
        &["policy", "list"],
        &["policy", "swap"],
        &["policy", "reset"],
        &["policy", "check"],
        &["policy", "map"],
        &["policy", "new"],
        &["policy", "shadow"],
        &["policy", "promote-shadow"],
        &["cache"],
        &["cache", "inspect"],
        &["trace"],
        &["top"],
        &["why"],
        &["replay"],
        &["stop"],
    ];
    for command in commands {
        let outcome = run(&[command, &["--help"]].concat());
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{command:?}");
        assert!(outcome.stdout.contains("Usage: ublk-bpf"), "{}", outcome.stdout);
        let longest = outcome.stdout.lines().map(str::len).max().unwrap();
        assert!(longest <= 115, "{command:?}: a line of {longest} bytes");
    }
}

#[test]
fn help_has_examples_and_shows_only_what_exists() {
    let help = run(&["--help"]).stdout;
    assert!(
        help.contains("Examples:") && help.contains("ublk-bpf run "),
        "{help}"
    );
    let help = run(&["run", "--help"]).stdout;
    for option in [
        "--backing",
        "--policy",
        "--logical-block",
        "--recovery",
        "--recover",
        "--daemon",
        "--config",
        "mem:1G",
        "Examples:",
        "[[device]]",
        "--cache",
        "--cache-block",
        "--cache-mode",
        "--cache-eviction",
        "--promote-limit",
        "--cache-reset",
        "write-back",
        "--dirty-high",
        "--clean-limit",
        "--abandon-dirty",
    ] {
        assert!(help.contains(option), "{option} is not in\n{help}");
    }
}

#[test]
fn options_of_a_cache_are_checked() {
    let size = |text: &str| {
        format!(
            "invalid value '{text}' for '--cache-block <SIZE>': {text} is not a cache block size: give a power of two from 4K to 1M (see `ublk-bpf --help`)"
        )
    };
    for text in ["5K", "2K", "2M"] {
        wrong_usage(&["run", "--cache", "mem:1M", "--cache-block", text], &size(text));
    }
    for (args, name) in [
        (&["--cache-mode", "write-around"][..], "cache-mode"),
        (&["--cache-block", "64K"], "cache-block"),
        (&["--cache-eviction", "clock"], "cache-eviction"),
        (&["--promote-limit", "1G"], "promote-limit"),
        (&["--cache-reset"], "cache-reset"),
    ] {
        let line = format!("{name} applies to a cache, and the device has none: name one with --cache");
        wrong_usage(&[&["run"], args].concat(), &line);
    }
    wrong_usage(
        &["run", "--recover", "0", "--cache", "mem:1M"],
        "the argument '--recover [<N>]' cannot be used with '--cache <CACHE>' (see `ublk-bpf run --help`)",
    );
    refused(
        Path::new("."),
        &["run", "--backing", "null:1G", "--cache", "mem:1M"],
        1,
        "null: stores nothing that could be cached: use a file, a block device or mem:SIZE as backing, or no cache",
    );
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let (reader, writer) = std::io::pipe().unwrap_or_else(|error| panic!("no pipe: {error}"));
    drop(reader);
    let outcome = run_into(writer, &["policy", "list"]);
    // As a shell reports a program that SIGPIPE ended.
    assert_eq!((outcome.status, outcome.stderr.as_str()), (141, ""));
}

#[test]
fn output_that_cannot_be_written_is_an_error_in_one_line() {
    for args in [&["policy", "list"][..], &["policy", "list", "--json"]] {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .unwrap_or_else(|error| panic!("cannot open /dev/full: {error}"));
        let outcome = run_into(full, args);
        assert_eq!(outcome.status, 1);
        assert_eq!(
            outcome.stderr,
            "ublk-bpf: cannot write to standard output: No space left on device (os error 28)\n"
        );
    }
}

#[test]
fn top_wants_a_terminal() {
    refused(
        Path::new("."),
        &["top"],
        1,
        "top needs a terminal for its input and output: `ublk-bpf stats ID --watch` writes to a file or pipe",
    );
}

#[test]
fn version_is_one_line() {
    let outcome = run(&["--version"]);
    assert_eq!(
        (outcome.status, outcome.stdout.as_str()),
        (0, concat!("ublk-bpf ", env!("CARGO_PKG_VERSION"), "\n"))
    );
}

#[test]
fn no_command_is_wrong_usage_and_prints_the_help() {
    let outcome = run(&[]);
    assert_eq!(outcome.status, 2);
    assert!(outcome.stderr.contains("Usage: ublk-bpf"), "{}", outcome.stderr);
}

#[test]
fn a_wrong_command_line_is_told_in_one_line() {
    wrong_usage(
        &["featurs"],
        "unrecognized subcommand 'featurs'; a similar subcommand exists: 'features' (see `ublk-bpf --help`)",
    );
    wrong_usage(
        &["show"],
        "the following required arguments were not provided: <ID> (see `ublk-bpf show --help`)",
    );
    wrong_usage(
        &["show", "sda"],
        "invalid value 'sda' for '<ID>': `sda` is not a ublk device: give its number (0 to 1048575), ublkbN or /dev/ublkbN, or the name of a device, which `ublk-bpf list` shows (see `ublk-bpf --help`)",
    );
    wrong_usage(
        &["run", "--name", "Mail"],
        "invalid value 'Mail' for '--name <NAME>': \"Mail\" cannot be the name of a device: give 1 to 32 of the characters a-z, 0-9, _ and -, not all of them digits, and not ublkbN (see `ublk-bpf --help`)",
    );
    wrong_usage(
        &["stop"],
        "the following required arguments were not provided: <ID|--all> (see `ublk-bpf stop --help`)",
    );
}

#[test]
fn sizes_and_numbers_are_checked_at_the_door() {
    for (backing, why) in [
        (
            "mem:1X",
            "not a size: \"1X\": write a number with K, M, G or T, such as 64K, 1G or 1GiB (powers of 1024)",
        ),
        (
            "mem:0",
            "a size of zero: \"0\": a device needs at least 512 bytes",
        ),
        (
            "mem:1000",
            "not a multiple of 512: \"1000\" is 1000 bytes: take 512 or 1024",
        ),
        ("null:99999P", "a size too large: \"99999P\": the most is 8191P"),
        (
            "null:1G,full",
            "not an option of null: \"full\": only null:SIZE,unfilled is known",
        ),
    ] {
        wrong_usage(
            &["run", "--backing", backing],
            &format!("invalid value '{backing}' for '--backing <BACKING>': {why} (see `ublk-bpf --help`)"),
        );
    }
    wrong_usage(
        &["run", "--depth", "0"],
        "invalid value '0' for '--depth <N>': 0 is not in 1..=4096 (see `ublk-bpf --help`)",
    );
    wrong_usage(
        &["run", "--queues", "5000"],
        "invalid value '5000' for '--queues <N>': 5000 is not in 1..=4096 (see `ublk-bpf --help`)",
    );
}

#[test]
fn memory_cannot_be_recovered() {
    wrong_usage(
        &["run", "--recovery", "reissue"],
        "a memory backing does not outlive its server: --recovery needs a file or a block device as backing",
    );
}

#[test]
fn a_backing_that_cannot_serve_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("folder")).unwrap();
    File::create(at.join("empty")).unwrap();
    fs::write(at.join("odd"), [0; 1000]).unwrap();
    let path = |name: &str| at.join(name).display().to_string();
    let check = |name: &str, why: &str| {
        let line = format!("backing {}: {why}", path(name));
        refused(at, &["run", "--backing", name], 1, &line);
        // In the background it is the same line, from the same command.
        if has_ublk() {
            refused(at, &["run", "--daemon", "--backing", name], 1, &line);
        }
    };
    let missing = path("missing");
    check(
        "missing",
        &format!("does not exist: create it first, for example with `truncate -s 1G {missing}`"),
    );
    check("folder", "is a directory: give a regular file or a block device");
    let empty = path("empty");
    check(
        "empty",
        &format!("is empty: give it a size, for example with `truncate -s 1G {empty}`"),
    );
    let outcome = run_in(at, &["run", "--backing", "odd"]);
    assert_eq!(outcome.status, 1);
    assert!(
        outcome
            .stderr
            .contains("1000 bytes is not a multiple of its block of"),
        "{}",
        outcome.stderr
    );
    assert_eq!(outcome.stderr.lines().count(), 1);
}

#[test]
fn a_cache_that_cannot_serve_is_not_called_a_backing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("folder")).unwrap();
    File::create(at.join("empty")).unwrap();
    for (name, why) in [
        ("missing", "does not exist"),
        ("folder", "is a directory"),
        ("empty", "is empty"),
    ] {
        let outcome = run_in(at, &["run", "--backing", "mem:1M", "--cache", name]);
        assert_eq!(outcome.status, 1);
        let line = format!("ublk-bpf: cache {}: {why}", at.join(name).display());
        assert!(outcome.stderr.starts_with(&line), "{}", outcome.stderr);
    }
}

#[test]
fn the_backing_is_no_cache() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    File::create(at.join("backing"))
        .unwrap()
        .set_len(4 << 20)
        .unwrap();
    fs::hard_link(at.join("backing"), at.join("link")).unwrap();
    for itself in ["backing", "link"] {
        let outcome = run_in(at, &["run", "--backing", "backing", "--cache", itself]);
        let line = format!(
            "ublk-bpf: cache {}: in use: it is the same storage as ",
            at.join(itself).display()
        );
        assert!(outcome.stderr.starts_with(&line), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1);
    }
}

#[test]
fn a_policy_about_a_cache_is_refused_where_there_is_none() {
    for policy in ["lru", "scan-resistant", "auto", "frugal"] {
        let line =
            format!("policy {policy} needs a cache, and the device has none: it would act as passthrough");
        wrong_usage(&["run", "--policy", policy], &line);
    }
}

#[test]
fn a_logical_block_is_checked_at_the_door() {
    for text in ["256", "513", "3K", "8K", "x"] {
        wrong_usage(
            &["run", "--logical-block", text],
            &format!(
                "invalid value '{text}' for '--logical-block <SIZE>': {text} is not a logical block size: give 512, 1K, 2K or 4K (see `ublk-bpf --help`)"
            ),
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    File::create(at.join("odd"))
        .unwrap()
        .set_len((1 << 20) + 512)
        .unwrap();
    fs::write(at.join("c.toml"), "backing = \"odd\"\nlogical-block = \"4K\"\n").unwrap();
    for args in [
        &["run", "--backing", "odd", "--logical-block", "4096"][..],
        &["run", "--config", "c.toml"],
    ] {
        let outcome = run_in(at, args);
        assert!(
            outcome
                .stderr
                .contains("odd: 1049088 bytes is not a multiple of its block of 4096 bytes"),
            "{}",
            outcome.stderr
        );
        assert_eq!(outcome.stderr.lines().count(), 1);
    }
}

#[test]
fn any_bytes_can_be_a_path_and_none_of_them_breaks_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let name = OsStr::from_bytes(b"a\nb\x1b[31m\xff\\");
    let shown = format!("{}/a\\nb\\x1b[31m\\xff\\\\", at.display());
    let run_with = |option: &str, value: &OsStr| run_in(at, &[OsStr::new("run"), OsStr::new(option), value]);
    for (option, start) in [
        ("--backing", format!("backing {shown}: does not exist")),
        ("--policy", format!("{shown} cannot be a policy: No such file")),
        (
            "--config",
            "cannot read the configuration a\\nb\\x1b[31m\\xff\\\\: No such".to_owned(),
        ),
    ] {
        let outcome = run_with(option, name);
        let line = outcome.stderr.strip_prefix("ublk-bpf: ").unwrap();
        assert!(line.starts_with(&start), "{option}: {line}");
        assert_eq!(line.matches(|c: char| c.is_control()).count(), 1, "{line:?}");
    }
    // It is looked for under its own name: what is there is found.
    fs::create_dir(at.join(name)).unwrap();
    let outcome = run_with("--backing", name);
    assert_eq!(
        outcome.stderr,
        format!("ublk-bpf: backing {shown}: is a directory: give a regular file or a block device\n")
    );
}

#[test]
fn a_backing_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("used")).unwrap();
    file.set_len(1 << 20).unwrap();
    file.lock().unwrap();
    let outcome = run_in(folder.path(), &["run", "--backing", "used"]);
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.contains("used: in use "), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1);
}

#[test]
fn recover_takes_no_other_options() {
    wrong_usage(
        &["run", "--recover", "0", "--queues", "2"],
        "the argument '--recover [<N>]' cannot be used with '--queues <N>' (see `ublk-bpf run --help`)",
    );
    wrong_usage(
        &["run", "--recover", "--daemon"],
        "--recover needs the number of a device, or --all",
    );
    wrong_usage(
        &["run", "--recover", "0", "--all"],
        "--recover --all is for every device: give no number",
    );
    wrong_usage(
        &["run", "--all"],
        "the following required arguments were not provided: --recover [<N>] (see `ublk-bpf run --help`)",
    );
}

#[test]
fn a_device_that_is_not_there_is_told() {
    for args in [
        &["show", "1048575"][..],
        &["stats", "ublkb1048575"],
        &["trace", "1048575", "--record", "/nowhere/trace"],
        &["policy", "swap", "1048575", "sparse"],
        &["policy", "reset", "/dev/ublkb1048575"],
        &["run", "--recover", "1048575"],
    ] {
        refused(
            Path::new("."),
            args,
            1,
            "ublkb1048575 is not a device of ublk-bpf: see `ublk-bpf list`",
        );
    }
}

#[test]
fn policies_are_listed() {
    let outcome = run(&["policy", "list"]);
    assert!(
        outcome.stdout.starts_with(
            "POLICY          VERIFIED  DEVICES  WHAT IT DOES\npassthrough     -         -        "
        ),
        "{}",
        outcome.stdout
    );
    let json: serde_json::Value = serde_json::from_str(&run(&["policy", "list", "--json"]).stdout).unwrap();
    assert_eq!(json[0]["name"], "passthrough");
}

#[test]
fn an_empty_list_says_so() {
    if Path::new("/run/ublk-bpf").exists() {
        return;
    }
    let outcome = run(&["list"]);
    assert_eq!(
        (outcome.status, outcome.stdout.as_str()),
        (0, "no devices: make one with `ublk-bpf run`\n")
    );
    assert_eq!(run(&["list", "--json"]).stdout, "[]\n");
}

#[test]
fn without_ublk_every_command_that_needs_it_says_what_to_do() {
    if has_ublk() {
        return;
    }
    let line = "ublk is not available: /dev/ublk-control does not exist; load the driver with `modprobe ublk_drv` (batch I/O needs Linux >= 7.0)";
    for args in [
        &["run", "--backing", "mem:1M"][..],
        &["features"],
        &["features", "--json"],
        &["stop", "0"],
        &["stop", "--all"],
    ] {
        refused(Path::new("."), args, 1, line);
    }
}
