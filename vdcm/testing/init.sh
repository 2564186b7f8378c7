#!/bin/busybox sh
# The guest's init: mounts, then runs the commands that come over the second serial port.
# The first one is the kernel's console, so nothing but answers is on ours.
#
#   host:  <id> <seconds> <command in base64>\n
#   guest: <id> <status> <bytes>\n<bytes of stdout and stderr>
#
# The first line of the guest is "ready 0 0". A command that outlives its seconds is killed
# and ends with status 137; what it printed until then comes back.
export PATH=/bin HOME=/tmp
mkdir -p /dev /proc /run /sys /tmp # a user's own file system may lack any
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts

# Before anything is sent: the line discipline must not echo or translate.
exec 3<>/dev/ttyS1
stty raw -echo <&3
echo "ready 0 0" >&3
# Not in process 1: orphans are its children (timeout leaves one each time), and a busybox read that
# the end of a child interrupts forgets what it has read of the line so far.
(
    while read -r id seconds command <&3; do
        echo "$command" | base64 -d >/run/command
        timeout -s KILL "$seconds" sh /run/command </dev/null >/run/output 2>&1 3>&-
        echo "$id $? $(wc -c </run/output)" >&3
        cat /run/output >&3
    done
)
poweroff -f
