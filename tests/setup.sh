#!/bin/sh
# Sees to the programs that the demo and the tests run:
#
#   setup.sh [--check] [demo|lab|e2e|bench]...        (nothing named: the first three)
#
# Says nothing when they are there. Otherwise root gets the missing Debian packages installed, with
# no daemon started or enabled; anybody else, and --check, gets the line to run, and exit code 1.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

# Program, Debian package, and the parts that need it.
programs='
ip       iproute2         demo lab e2e bench
setpriv  util-linux       demo lab e2e bench
nft      nftables         demo lab e2e bench
bird     bird2            demo lab bench
ping     iputils-ping     lab bench
arping   iputils-arping   lab e2e
/usr/lib/frr/bgpd frr     lab bench
gobgpd   gobgpd           lab
exabgp   exabgp           lab
bgpctl   openbgpd         lab
curl     curl             lab e2e bench
tcpdump  tcpdump          lab bench
keepalived keepalived     bench
python3  python3          lab e2e
setcap   libcap2-bin      lab e2e
openssl  openssl          e2e
flock    util-linux       e2e
'
# An older one cannot fetch the version that the modules under tests/ ask for.
go_at_least=21

check_only=
case ${1:-} in
--check) check_only=yes && shift ;;
esac
[ $# -gt 0 ] || set -- demo lab e2e
for part; do
    case $part in
    demo | lab | e2e | bench) ;;
    *) echo "setup: there is no part \"$part\"; they are demo, lab, e2e and bench" >&2 && exit 2 ;;
    esac
done

needed() { # the parts that need it: is one of them asked for?
    for wanted in $asked; do
        for part; do [ "$part" = "$wanted" ] && return 0; done
    done
    return 1
}

asked=$*
packages= missing=
while read -r program package parts; do
    [ -n "$program" ] || continue
    # shellcheck disable=SC2086 # several words
    if needed $parts && ! command -v "$program" >/dev/null; then
        missing="$missing $program"
        case " $packages " in *" $package "*) ;; *) packages="$packages $package" ;; esac
    fi
done <<LIST
$programs
LIST

failed=
if needed e2e; then
    minor=$(go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
    if [ "${minor:-0}" -lt "$go_at_least" ]; then
        echo "setup: Go 1.$go_at_least or newer is missing: https://go.dev/dl/, into /usr/local/go" >&2
        failed=yes
    fi
fi

if [ -n "$packages" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "setup: missing:$missing (Debian's packages are called$packages)" >&2
        exit 1
    elif [ -n "$check_only" ] || [ "$(id -u)" != 0 ]; then
        echo "setup: missing:$missing; install them with" >&2
        echo "    sudo $0 $asked" >&2
        exit 1
    fi
    echo "setup: installing$packages" >&2

    # Debian starts a daemon with its package unless this program says no (101). Ours stands in
    # for one that may be there.
    policy=/usr/sbin/policy-rc.d
    [ ! -e $policy ] || mv $policy $policy.before-berth
    restore() {
        rm -f $policy
        [ ! -e $policy.before-berth ] || mv $policy.before-berth $policy
    }
    trap restore EXIT
    trap 'exit 130' INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy

    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >&2
    # shellcheck disable=SC2086 # several words
    apt-get -qq install --no-install-recommends $packages >&2
    # Nor at the next boot, by whichever of the two ways this system boots.
    for package in bird2 exabgp frr gobgpd keepalived openbgpd; do
        case " $packages " in *" $package "*) ;; *) continue ;; esac
        service=${package%2}
        if command -v systemctl >/dev/null; then
            systemctl --quiet disable "$service" >&2 || :
        else
            rm -f "/etc/systemd/system/multi-user.target.wants/$service.service"
        fi
        [ ! -e "/etc/init.d/$service" ] || update-rc.d "$service" disable >&2 || :
    done
fi
[ -z "$failed" ]
