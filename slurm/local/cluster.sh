# Where the local cluster keeps its files and which processes are its: read by up, down and status.
# shellcheck shell=bash

folder=${DIST_TRAINER_SLURM_FOLDER:-/var/lib/dist-trainer-slurm}
mark=dist-trainer-slurm                 # in every file of ours outside of $folder
slurm_conf=/etc/slurm/slurm.conf
cluster_name=dist_trainer_local
packages=(slurm-wlm slurmdbd munge mariadb-server)
daemons=(munged mariadbd slurmdbd slurmctld slurmd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '%s\n' "$*"; }

fail() {
    printf 'slurm/local: %s\n' "$*" >&2
    exit 1
}

need_root() {
    [[ $(id -u) == 0 ]] || fail "root is needed: the daemons run as root, and names go into /etc/hosts. Try: sudo $0"
}

one_at_a_time() {
    exec 9>"/run/lock/$mark" || fail "cannot write /run/lock/$mark"
    flock -w 300 9 || fail "another up or down has held /run/lock/$mark for 5 minutes"
}

config_is_ours() { [[ -e $slurm_conf ]] && grep -q "^# $mark:" "$slurm_conf"; }

# pids NAME: the live processes of that name, ours or not
pids() {
    local status name state
    for status in /proc/[0-9]*/stat; do
        # "pid (name) state ...": a zombie is dead, whatever its parent makes of it
        { read -r _ name state _ <"$status"; } 2>/dev/null || continue
        if [[ $name == "($1)" && $state != Z ]]; then
            basename "$(dirname "$status")"
        fi
    done
}

is_ours() { tr '\0' '\n' 2>/dev/null <"/proc/$1/environ" | grep -qx "DIST_TRAINER_SLURM=$folder"; }

# our_pids NAME: those that `up` started
our_pids() {
    local pid
    for pid in $(pids "$1"); do
        if is_ours "$pid"; then
            say "$pid"
        fi
    done
}

# why_foreign: says which SLURM here is not ours; nothing where there is none
why_foreign() {
    local name pid
    if [[ -e $slurm_conf ]] && ! config_is_ours; then
        say "$slurm_conf is not ours"
        return
    fi
    if [[ -n ${SLURM_CONF:-} && $SLURM_CONF != "$slurm_conf" && $SLURM_CONF != "$folder/slurm.conf" ]]; then
        say "SLURM_CONF is $SLURM_CONF"
        return
    fi
    for name in slurmctld slurmd slurmdbd; do
        for pid in $(pids "$name"); do
            if ! is_ours "$pid"; then
                say "$name runs as process $pid and is not ours"
                return
            fi
        done
    done
    if ! config_is_ours && command -v sinfo >/dev/null && timeout 20 sinfo --noheader >/dev/null 2>&1; then
        say "sinfo answers from a cluster that is not ours"
    fi
}
