"""Makes modules of one package see what they would see under Windows, as far as a Linux can pretend.

`disguise("univid")` before the first import of univid: to modules below that name `fcntl` and its like are
not there, `os` and `signal` lack what only POSIX has, and `open` of a text without an encoding is an error,
because Windows has another one. In the whole process a file that is open cannot be renamed, replaced or
removed, and `os.rename` replaces nothing. Other libraries see what is there: Windows has builds of theirs.

Needs `python -X warn_default_encoding`, and /proc.
"""

import builtins
import errno
import os
import re
import sys
import types
import warnings

ABSENT_MODULES = set(
    "crypt fcntl grp nis posix pty pwd readline resource spwd syslog termios tty _posixsubprocess".split()
)
CONSTANTS = set(  # of os, in capitals, that are there; the others are not
    "F_OK R_OK W_OK X_OK O_APPEND O_CREAT O_EXCL O_RDONLY O_RDWR O_TRUNC O_WRONLY P_NOWAIT P_WAIT SEEK_CUR "
    "SEEK_END SEEK_SET TMP_MAX EX_OK".split()
)
ABSENT_FROM_OS = set(  # what its documentation marks as Unix alone
    "chown chroot confstr copy_file_range ctermid environb eventfd fchdir fchmod fchown fdatasync fork "
    "forkpty fpathconf fstatvfs fwalk get_blocking getegid getenvb geteuid getgid getgrouplist getgroups "
    "getloadavg getpgid getpgrp getpriority getrandom getresgid getresuid getsid getuid getxattr initgroups "
    "killpg lchown listxattr lockf login_tty major makedev memfd_create minor mkfifo mknod nice openpty "
    "pathconf pidfd_open pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite "
    "pwritev readv register_at_fork removexattr sched_getaffinity sched_getscheduler sched_setaffinity "
    "sched_setscheduler sched_yield sendfile set_blocking setegid seteuid setgid setgroups setpgid setpgrp "
    "setpriority setregid setresgid setresuid setreuid setsid setuid setxattr splice statvfs sync sysconf "
    "tcgetpgrp tcsetpgrp ttyname uname unshare wait wait3 wait4 waitid writev".split()
)
ILLEGAL = set('<>:"|?*\\')  # in a file's name
SIGNALS = re.compile(  # what signal has there; the rest is absent
    r"_.*|SIG(ABRT|FPE|ILL|INT|SEGV|TERM|_DFL|_IGN)|NSIG|Signals|Handlers|signal|getsignal|raise_signal"
    r"|strsignal|valid_signals|set_wakeup_fd|default_int_handler"
)


def disguise(package: str, tell=lambda module, name: None) -> None:
    """From now on modules whose name begins with `package` see a Windows.

    tell(module, name): told of every import that got something else than is there.
    """
    own = re.compile(rf"{re.escape(package)}(\.|$)")
    stand_ins = {
        "os": StandIn(os, lacking_in_os, name="nt"),
        "signal": StandIn(__import__("signal"), lambda name: not SIGNALS.fullmatch(name)),
        "sys": StandIn(sys, lambda name: name == "getwindowsversion", platform="win32"),
        "mmap": StandIn(__import__("mmap"), lambda name: name.startswith(("PROT_", "MAP_", "MADV_"))),
        "select": StandIn(__import__("select"), lambda name: name != "select"),
        "time": StandIn(__import__("time"), lambda name: name.startswith(("clock_", "CLOCK_", "tzset"))),
    }
    real = builtins.__import__

    def importing(name, globals=None, locals=None, fromlist=(), level=0):
        if level == 0 and own.match((globals or {}).get("__name__") or ""):
            if name in ABSENT_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in stand_ins or (not fromlist and name.split(".")[0] in stand_ins):
                tell(globals["__name__"], name)
                return stand_ins[name.split(".")[0]]
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = importing
    warnings.filterwarnings("error", category=EncodingWarning, module=own.pattern)
    for name in ("rename", "replace", "remove", "unlink"):
        setattr(os, name, as_windows(getattr(os, name)))


def lacking_in_os(name: str) -> bool:
    """Whether a name of os is not there."""
    return name in ABSENT_FROM_OS or (name.isupper() and name not in CONSTANTS)


class StandIn(types.ModuleType):
    """A module without some of its names, and with others instead."""

    def __init__(self, real: types.ModuleType, absent, **instead):
        super().__init__(real.__name__)
        self.__dict__.update(instead, _real=real, _absent=absent)

    def __getattr__(self, name: str):
        if self._absent(name):
            raise AttributeError(f"module {self._real.__name__!r} has no attribute {name!r} under Windows")
        return getattr(self._real, name)


def as_windows(function):
    """os.rename, replace, remove or unlink, refusing what Windows refuses."""

    def checked(path, *target, **options):
        if sys._getframe(1).f_globals.get("__name__") == "tempfile":  # which has another way there
            return function(path, *target, **options)
        folder = options.get("src_dir_fd", options.get("dir_fd"))
        base = "" if folder is None else os.readlink(f"/proc/self/fd/{folder}")
        for place in (path, *target[:1]):
            place = os.path.join(base, os.fspath(place))
            if set(os.path.basename(place)) & ILLEGAL or place.endswith((".", " ")):
                raise OSError(errno.EINVAL, "The name is not allowed", place)
            if is_open(place):
                raise PermissionError(errno.EACCES, "The file is open", place)
        if target and os.path.lexists(target[0]) and (renames or os.path.isdir(target[0])):
            raise FileExistsError(errno.EEXIST, "There is one already", os.fspath(target[0]))
        return function(path, *target, **options)

    renames = function.__name__ == "rename"
    return checked


def is_open(path: str) -> bool:
    """Whether this process has a file open or mapped, or one below a folder."""
    path = os.path.realpath(path)
    held = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            held.add(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        except OSError:  # that of listdir itself
            continue
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        held |= {line.split(maxsplit=5)[-1].rstrip("\n") for line in maps if line.count("/")}
    return any(name == path or name.startswith(path + "/") for name in held)
