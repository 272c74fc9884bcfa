"""`python -m training blind`: makes the page, or counts what people voted on it."""

import argparse
import json
import math
import secrets
from pathlib import Path

from univid.files.output import check_file, new_file
from univid.messages import shown

from .questions import QUESTIONS

HELP = "let people compare two folders of videos without knowing whose is whose, and count their votes"
ABOUT = """
Let people compare two folders of videos without knowing whose is whose, and count their votes.

`blind A B --out PAGE` writes the folder PAGE, which opens in any browser from disk (PAGE/index.html) and asks
nothing of a network, and PAGE-key.json beside it. Hand out the folder alone. Each person gets an order and
sides of their own, votes by keyboard, mouse or finger, and sends back the file of votes that the page saves.
`blind --count VOTES ...` merges such files and prints how often A's video was better, the same and worse.

The key alone says which video is whose. In the page they have names drawn at random, and all are written anew
(H.264, without sound, receipts or other notes), so names, dates, kinds of files and metadata tell nothing,
not even to those who read the page's source. What stays: a size, a length, a rate or a look that one model
alone has, and who can reach both folders can compare.
"""


def add(commands: argparse._SubParsersAction) -> None:
    """Give the command line `blind`."""
    blind = commands.add_parser(
        "blind", help=HELP, description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    blind.add_argument("a", type=Path, nargs="?", metavar="A", help="folder of videos, the model in question")
    blind.add_argument("b", type=Path, nargs="?", metavar="B", help="folder of those it is compared with")
    blind.add_argument("--out", type=Path, metavar="PAGE", help="folder to write; with --count: JSON")
    blind.add_argument(
        "--prompts",
        metavar="FILE",
        help="show the pairs of these prompts alone: a list as of `sample`, which may give them by name to "
        "videos that do not say theirs in manifest.jsonl or NAME.txt",
    )
    blind.add_argument(
        "--questions",
        nargs="+",
        choices=QUESTIONS,
        help="default: all that the videos can be asked",
    )
    blind.add_argument("--pairs", type=int, metavar="N", help="show N of the pairs, drawn (default: all)")
    blind.add_argument("--names", nargs=2, metavar="NAME", help="of A and B in the table (default: folders')")
    blind.add_argument("--fps", type=float, default=math.nan, help="of frames that do not say theirs")
    blind.add_argument(
        "--seed", type=int, help="of order and names: tells whose is whose (default: drawn; the key has it)"
    )
    blind.add_argument("--count", type=Path, nargs="+", metavar="VOTES", help="files that the page saved")
    blind.add_argument(
        "--key", type=Path, help="PAGE-key.json (default: looked for here and beside the votes)"
    )


def blind(options: argparse.Namespace) -> str:
    """Make a page or count votes; what is to be said about it.

    Raises:
        ValueError: what is wrong, in one sentence.
    """
    if options.count:
        if options.a is not None:
            raise ValueError("expected folders for a page or votes to count, got both; give one of them.")
        return _count(options.count, options.key, options.out)
    if None in (options.a, options.b, options.out):
        raise ValueError("expected two folders and --out PAGE, or --count VOTES; give the one or the other.")
    return _make(options)


def _make(options: argparse.Namespace) -> str:
    from .. import prompts, vbench_environment
    from .page import check_page, choose_questions, make_page
    from .pairs import draw, find_pairs

    if not math.isnan(options.fps) and not 0.01 <= options.fps <= 1000:
        raise ValueError(f"--fps must be from 0.01 to 1000, got {options.fps}.")
    check_page(options.out, [options.a, options.b])
    asked = None
    if options.prompts:
        asked = prompts.by_name(options.prompts, vbench_environment.default_folder())
    seed = secrets.randbits(48) if options.seed is None else options.seed
    pairs = draw(find_pairs(options.a, options.b, asked), options.pairs, seed)
    questions = choose_questions(pairs, options.questions)
    names = tuple(options.names or (folder.resolve().name for folder in (options.a, options.b)))
    made = make_page(pairs, names, options.out, questions, seed, options.fps)
    differing = [f"{number} in {kind}" for kind, number in made.differing.items() if number]
    number = f"{len(pairs)} pair{'s' * (len(pairs) != 1)}"
    lines = [
        f"{made.page}: {number}, asked for {', '.join(questions)}; hand out its folder",
        f"{made.key}: which video is whose; keep it to count the votes",
    ]
    if differing:
        lines.append(
            f"pairs whose videos differ: {', '.join(differing)}; both are shown equally large, each at its "
            "own rate, and the shorter one waits for the longer, as the page says before"
        )
    return "\n".join(lines)


def _count(paths: list[Path], key_path: Path | None, out: Path | None) -> str:
    from .count import count
    from .key import find_key, read_key
    from .table import table, to_json
    from .votes import merge, read_ballot

    if out is not None:
        if out.exists():
            raise ValueError(f"{shown(out)} exists already; name another file.")
        check_file(out, [*paths, key_path])
    ballots = [read_ballot(path) for path in paths]
    folders = [Path(), *(path.parent for path in paths)]
    key = read_key(key_path or find_key(ballots[0].page, folders))
    votes = merge(ballots, key)
    figures = count(votes)
    if out is not None:
        with new_file(out) as temporary:
            temporary.write_text(json.dumps(to_json(key, votes, figures), indent=1) + "\n", "utf-8")
    return table(key, votes, figures)


COMMANDS = {"blind": blind}
