"""One module per command of the command line: its arguments, what it does and what it prints.

A new command is a module in this folder and a line in `COMMANDS`. The module has two functions:
`add_arguments(parser)`, and `run(options)`, which returns an exit status, or None for success; and
`EXAMPLES`, command lines that its help ends with.
"""

COMMANDS = {
    "image": "build, boot, publish, and write the manifest",
    "nightly": "build and publish what changed of all appliances, for build servers",
    "plan": "tell what would be done, and why; writes nothing",
    "build": "build and boot, without publishing",
    "boot": "start a site's machine, with its console on this terminal",
    "check": "look for faults in an image file, or run the boot check's script in a machine",
    "shell": "open a shell in the root file system of the last build, on a copy",
    "logs": "list the logs of stages, or print one",
    "new": "write a definition to start from",
    "publish": "publish what is built and booted",
    "retire": "remove a build's images from its sites",
    "list": "list builds, or with --site the images that a site has",
    "clean": "tell what crashes left at a site; with --remove, remove it",
    "pin": "fetch the base image of a definition, show it, and write its digest there",
    "catalog": "write static pages and feeds of all appliances, from their manifests",
    "mark": "say that a build is deprecated or withdrawn, or take that back",
    "show": "show a build's manifest",
    "manifest": "validate or show a manifest's file, or compare two",
    "verify": "check a build's signatures, documents and images, here or at a site",
    "vulnerabilities": "list what is known to be open in a build's packages",
    "diff": "tell what differs between two builds or image files",
    "reproduce": "make a build once more from what its manifest names, and compare every digest",
    "inspect": "tell what an image file is, which clouds it would boot on, and why not",
    "doctor": "look at this host: what is missing, and what mends it",
    "launch-config": "send a build's launch configurations to a Phantom",
    "domain": "create, show, list, resize or delete a Phantom's groups of machines",
    "launch": "start a build's machines at a cloud, without Phantom",
    "phantom-sandbox": "run a local Phantom, whose machines are guests of this host",
    "schema": "print the JSON Schema of definitions, or of what commands print",
    "completion": "print what completes commands in bash or zsh",
    "man": "print the manual page",
    "prune": "remove old builds from this host, as definitions say",
    "gc": "evict what was used longest ago from the store",
}
"""What each command does, in the order in which `--help` lists them. A command's module has its
name, with `_` for `-`, and is imported only when the command is run or asked for help."""
