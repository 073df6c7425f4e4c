# sandrun.mk: every goal of a Makefile with the line `include sandrun.mk` is made in sandrun's queue.
#
# Promises
# - `make ANYTHING` waits for its turn like `sandrun -- make ANYTHING`, whatever starts make. Inside
#   a run of the same queue nothing happens, and from GNU make 4.2 on that costs no process.
# - Options, goals, variables, the environment, standard input, exit codes and the jobserver are those
#   of plain make: the make that does the work gets the same words and environment as this one.
# - -n, -q and -t run nothing and do not queue. SANDRUN_MAKE=off bypasses sandrun. On a machine
#   without sandrun, make prints a warning and does the work itself.
# - `make kill-all` ends all your runs and waiters at once.
#
# Mechanism: GNU make remakes the files that it included before it considers the goals. Outside of a
# run we include one file that never exists (a gate) for each goal, and the recipe for the first gate
# is the run. A pattern rule makes two targets, a gate and its goal, so make believes that the goals
# are made, or have failed, and exits. The recipes of other included files (such as *.d) are left to
# the make inside the run: here their shell does nothing.
#
# Nothing that a Makefile or a command line may set is trusted: not CURDIR, MAKECMDGOALS, MAKELEVEL or
# SHELL. The directory comes from the kernel, the goals are the words with which make was started, and
# `sandrun make-again` refuses a make that does not know that it is inside a run.
#
# Limits: a Makefile is read twice, so what it prints while it is read (not in recipes) is printed
# twice, and --trace shows the gate too. With -i the outer make ignores errors, so an extra line
# reports that the run failed, and make exits with 2.
#
# A Makefile may have set .RECIPEPREFIX, and make may warn of undefined variables. So recipes follow a
# semicolon, and `value` reads variables that may be undefined.

# A make other than GNU's stops at the second line here. GNU make skips it with the whole ifdef.
ifdef :
.error sandrun.mk needs GNU make 4 (gmake); to do without sandrun, remove the line that includes it
endif

ifneq ($(origin sandrun.mk),file)
sandrun.mk := $(lastword $(MAKEFILE_LIST))
# The PATH of cron and of many IDEs lacks directories of a login shell's PATH. If a Makefile sets PATH
# too, we also read the PATH with which make was started.
sandrun.blank := $(subst ,, )
sandrun.in = $(firstword $(foreach d,$(subst :, ,$(subst $(sandrun.blank),{blank},$1)),\
    $(if $(wildcard $(subst {blank},\ ,$d)/sandrun),$(if $(wildcard $(subst {blank},\ ,$d)/sandrun/.),,\
    $d/sandrun))))
sandrun.command = $(subst {blank},$(sandrun.blank),$(or \
    $(call sandrun.in,$(if $(value PATH),$(PATH)):$(wildcard ~)/.local/bin:/usr/local/bin),\
    $(if $(filter environment undefined,$(origin PATH)),,$(call sandrun.in,$(shell \
    tr '\0' '\n' </proc/$$PPID/environ 2>/dev/null | sed -n s/^PATH=//p)))))
sandrun.quoted = '$(subst ','\'',$(or $(sandrun.command),sandrun))'

# A pattern rule, so that a kill-all of the Makefile's own has precedence.
kill-al%: ; @$(sandrun.quoted) kill --all || [ $$? = 1 ]

# Whether we are inside a run of this queue: each run that the environment names has a ticket that its
# owner still holds open, and encloses us (by its cgroup, or with its owner among our ancestors); and
# no other project lies between this directory and that run's project. (A wrong `no` costs a start of
# sandrun, which checks it again. Without /proc, as on macOS, we trust tickets and environment.)
sandrun.here := $(realpath .)
sandrun.project := $(value SANDRUN_PROJECT)
sandrun.read = $(if $(filter 4.0 4.1,$(MAKE_VERSION)),$(shell cat $1),$(file <$1))
sandrun.above = $(patsubst PPid=%,%,$(filter PPid=%,$(subst \
    PPid:	,PPid=,$(call sandrun.read,/proc/$1/status))))
sandrun.climb = $(if $(filter-out 0 $2,$1),$(call sandrun.climb,$(call sandrun.above,$1),$2),$1)
sandrun.around = $(or $(findstring /sandrun-$(notdir $1),$(call sandrun.read,/proc/self/cgroup)),\
    $(filter $2,$(call sandrun.climb,$(call sandrun.above,self),$2)))
sandrun.owner = $(word 3,$(subst ., ,$(notdir $1)))
sandrun.live = $(and $2,$(or $(if $(wildcard /proc/self/fd),,no proc),$(and \
    $(filter $2,$(realpath $(wildcard /proc/$(call sandrun.owner,$2)/fd/*))),\
    $(call sandrun.around,$1,$(call sandrun.owner,$2)))))
sandrun.dead = $(foreach run,$(subst :, ,$(value SANDRUN_RUNS)),$(if $(call sandrun.live,$(run),\
    $(firstword $(wildcard $(dir $(run))r*.$(notdir $(run)).*))),,$(run)))
sandrun.up = $(if $(filter-out $(sandrun.project),$1),$1 $(call sandrun.up,$(patsubst %/,%,$(dir $1))))
sandrun.marks = $(if $(wildcard $(sandrun.project)/.git),.git,.git sandrun.toml pyproject.toml)
sandrun.below = $(if $(filter $(sandrun.project)/%,$(sandrun.here)),$(if $(strip \
    $(wildcard $(addprefix $(sandrun.project)/,$(sandrun.marks)))),$(if $(strip $(wildcard \
    $(foreach d,$(call sandrun.up,$(sandrun.here)),$(addprefix $d/,$(sandrun.marks))))),,below)))
sandrun.inside = $(and $(value SANDRUN_RUNS),$(sandrun.project),\
    $(if $(word 2,$(sandrun.here)),,one word),$(if $(strip $(sandrun.dead)),,live),\
    $(or $(filter $(sandrun.project),$(sandrun.here)),$(sandrun.below)))
sandrun.same = $(if $(subst |$1|,,|$2|),,same)

# A shim has executed this make by its path, which $(MAKE) would show; plain make shows its name.
sandrun.shim := $(subst :, ,x$(firstword $(value SANDRUN_SHIM)))
ifneq ($(filter $(MAKE_COMMAND),$(sandrun.shim)),)
sandrun.stat := $(call sandrun.read,/proc/self/stat)
ifneq ($(filter $(wordlist 1,2,$(sandrun.shim)),x$(word 1,$(sandrun.stat))) \
    $(call sandrun.same,$(wordlist 1,2,$(sandrun.shim)),x $(word 4,$(sandrun.stat))),)
MAKE_COMMAND := $(notdir $(MAKE_COMMAND))
endif
endif

# The short flags are the first word of MAKEFLAGS, which is empty or starts with -- if there are none.
sandrun.flags := $(filter-out --%,$(firstword -$(MAKEFLAGS)))
sandrun.plain := $(or $(filter off,$(value SANDRUN_MAKE)),\
    $(and $(sandrun.here),$(call sandrun.same,$(sandrun.here),$(value SANDRUN_MAKE))),\
    $(findstring n,$(sandrun.flags)),$(findstring q,$(sandrun.flags)),$(findstring t,$(sandrun.flags)),\
    $(if $(filter default,$(origin MAKECMDGOALS)),$(filter kill-all,$(value MAKECMDGOALS))),\
    $(sandrun.inside))
ifneq ($(value SANDRUN_MAKE),off)
unexport SANDRUN_MAKE
endif

ifeq ($(sandrun.plain),)
sandrun.command := $(sandrun.command)
ifeq ($(sandrun.command),)
$(warning sandrun: not found; going on without queue and memory limit)
else ifneq ($(filter 3.%,$(MAKE_VERSION)),)
$(error sandrun.mk needs GNU make 4; SANDRUN_MAKE=off bypasses sandrun)
else
sandrun.ignores := $(or $(findstring i,$(sandrun.flags)$(filter-out --% -I% -W% -o%,\
    $(filter -%,$(MAKEFLAGS)))),$(filter --ignore-errors,$(MAKEFLAGS)))
override MAKEFLAGS += -s -Otarget
# The goals: make's words without options, option values and variables; {blank} stands for a blank in
# a goal. Also whether an outer make has a jobserver, which only the environment shows while make 4.3
# reads the Makefile. This needs /bin/sh, so SHELL is set here, and restored for the rest of the
# Makefile. With -w or -C, any $(shell) of make 4.3 prints "Entering directory", so make's own list is
# used there, unless it was set by others; in that list a goal with a blank looks like two. (A newer
# make has applied the line above by now, and prints nothing.)
ifeq ($(and $(findstring w,$(sandrun.flags)),$(filter 0,$(MAKELEVEL)),\
    $(filter default undefined,$(origin MAKECMDGOALS))),)
sandrun.over := $(if $(filter command override,$(origin SHELL)),override)
sandrun.overflags := $(if $(filter command override,$(origin .SHELLFLAGS)),override)
$(eval sandrun.SHELL = $(value SHELL))
$(eval sandrun.SHELLFLAGS = $(value .SHELLFLAGS))
$(eval $(sandrun.over) SHELL := /bin/sh)
$(eval $(sandrun.overflags) .SHELLFLAGS := -c)
sandrun.words := $(shell { tr '\0\n\t' '\n  ' </proc/$$PPID/cmdline 2>/dev/null || \
    ps -ww -o args= -p $$PPID | tr ' ' '\n'; } | sed -E -e 1d -e :word -e '/^--$$/{' -e :goal \
    -e '$$d' -e 'N;s/^[^\n]*\n//;s/ /{blank}/g;/=|^-$$/!p;bgoal' -e '}' \
    -e '/^-[^-CEfIoWjlO]*[CEfIoW]$$/{$$!N;d;}' \
    -e '/^--(di|f|mak|ev|inc|ol|as|wh|ne)[a-z-]*$$/{$$!N;d;}' \
    -e '/^-([^-CEfIoWjlO]*[jl]|-j[a-z]*|-(loa|max)[a-z-]*)$$/{$$d;N;/\n[0-9.]+$$/d;s/^[^\n]*\n//;bword' \
    -e '}' -e '/^-/d;/=/d;s/ /{blank}/g;s,^(\./+)+,,'; \
    case $$MAKEFLAGS in (*--jobserver*) echo {jobs};; esac)
$(eval $(sandrun.over) SHELL = $(value sandrun.SHELL))
$(eval $(sandrun.overflags) .SHELLFLAGS = $(value sandrun.SHELLFLAGS))
else
sandrun.words := $(value MAKECMDGOALS)
endif
sandrun.goals := $(sort $(filter-out {jobs},$(sandrun.words)))
# The words of an emulator or a loader come before make's own. Make's list lacks them, and is used if
# it was not set by others.
ifeq ($(origin MAKECMDGOALS),default)
sandrun.goals := $(foreach goal,$(sandrun.goals),$(if \
    $(filter-out $(value MAKECMDGOALS),$(subst {blank}, ,$(goal))),,$(goal)))
sandrun.goals += $(filter-out $(subst {blank}, ,$(sandrun.goals)),$(value MAKECMDGOALS))
sandrun.goals := $(sort $(sandrun.goals))
else
sandrun.goals := $(filter-out $(MAKE_COMMAND),$(sandrun.goals))
endif
ifeq ($(sandrun.goals),)
sandrun.goals := .sandrun.default
override .DEFAULT_GOAL := .sandrun.default
.sandrun.default: ;
endif
# The goal is in the middle of a gate's name, so that no pattern of the Makefile's own fits better (make
# ignores directories for a pattern without a slash), and `lib.a(member)/go` is no archive member.
sandrun.named = $(subst {blank},\ ,$(subst :,\:,$(subst %,\%,$1)))
sandrun.gates := $(subst {blank},\ ,$(sandrun.goals:%=.sandrun.gate/%/go))
sandrun.first := $(firstword $(sandrun.goals:%=.sandrun.gate/%/go))
sandrun.go = exec $(sandrun.quoted)
sandrun.run = $(call sandrun.same,$(subst {blank},$(sandrun.blank),$(sandrun.first)),$@)

% .sandrun.gate/%/go:: .sandrun.goal/%/go ; +@$(if $(sandrun.run),$(sandrun.go) make-again,:)
$(call sandrun.named,$(sandrun.goals:%=.sandrun.goal/%/go)): ;
-include $(sandrun.gates)

# Where errors are ignored, the gate's error is not: .IGNORE gets the name of one file that does not
# exist, and with -i the recipe of .sandrun.end calls $(error), which make cannot ignore.
.IGNORE: .sandrun.none
ifneq ($(sandrun.ignores),)
sandrun.go = SANDRUN_MAKE=ignores exec $(sandrun.quoted)
.sandrun.end: $(call sandrun.named,$(sandrun.first)) ; @$(if $(filter passed,$(shell \
    SANDRUN_MAKE=ended exec $(sandrun.quoted) make-again)),,$(error \
    sandrun: the run failed, which -i does not ignore))
-include .sandrun.end
.sandrun.end: override SHELL := /bin/sh
.sandrun.end: override .SHELLFLAGS := -c
endif

# Only gates do or print anything here. The inner make does not get these flags. -O, which takes effect
# with -j, also keeps this make from printing "Entering directory".
%: override SHELL := $(firstword $(wildcard /bin/true /usr/bin/true))
.sandrun.gate/%/go: override SHELL := /bin/sh
.sandrun.gate/%/go: override .SHELLFLAGS := -c
ifeq ($(filter {jobs},$(sandrun.words)),)
override MAKEFLAGS += -j
endif
.NOTPARALLEL:
endif
endif
endif
