# The rest of process 1's work where the guest boots a system, which is in /sysroot and has systemd.
# /etc/guest/command is run before that, as a service of it, and after its shutdown, with `before`, `booted` or `after` as
# its argument. The first that fails decides how the guest ends; `after` comes in any case.

# Runs the command with its output on the consoles, which forget their settings when no process has them open.
cat >/etc/guest/run <<'END'
exec 6>/dev/hvc0 7>/dev/hvc1
for console in 6 7; do stty raw -echo <&$console; done
guest=$1
cd /
/bin/sh "$guest/command" "$2" </dev/null >&6 2>&7
status=$?
[ $status = 0 ] || [ -e "$guest/status" ] || echo $status >"$guest/status"
END

# What systemd starts last of all: this file system is the root again, and the system's is /oldroot.
cat >/shutdown <<'END'
#!/bin/sh
export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/usr/libexec/busybox HOME=/root TERM=linux LC_ALL=C
# It was made read-only like any other.
mount -o remount,rw /
exec 5>/dev/hvc2 6>/dev/hvc0 7>/dev/hvc1
for console in 5 6 7; do stty raw -echo <&$console; done
/bin/sh /etc/guest/run /etc/guest after
echo "exit $(cat /etc/guest/status 2>/dev/null || echo 0)" >&5
marker=$(cat /etc/guest/marker)
printf '%s' "$marker" >&6
printf '%s' "$marker" >&7
echo "<0>$marker" >/dev/kmsg
while :; do sleep 60; done
END
chmod +x /shutdown
mkdir /oldroot

mkdir -p /sysroot/etc/systemd/system
cat >/sysroot/etc/systemd/system/default.target <<'END'
[Unit]
Description=What the guest is for
Requires=basic.target
Wants=guest.service
After=basic.target
AllowIsolate=yes
END
cat >/sysroot/etc/systemd/system/guest.service <<'END'
[Unit]
Description=The guest's command
[Service]
Environment=PATH=/usr/local/bin:/usr/sbin:/usr/bin:/usr/libexec/busybox HOME=/root LC_ALL=C
ExecStart=/bin/sh /run/initramfs/etc/guest/run /run/initramfs/etc/guest booted
ExecStopPost=/usr/bin/systemctl --no-block poweroff
TimeoutStopSec=10min
END

exec 5<>/dev/hvc2
stty raw -echo <&5
echo ready >&5
cp -al /usr/local /sysroot/usr/
cp -al /usr/lib/modules /sysroot/usr/lib/
for file in order builtin builtin.modinfo; do touch "$(echo /sysroot/usr/lib/modules/*)/modules.$file"; done
chroot /sysroot depmod
# Nothing has to be brought up to date.
touch /sysroot/etc/.updated /sysroot/var/.updated
/bin/sh /etc/guest/run /etc/guest before
exec 5>&-

# systemd mounts these itself.
umount /sys/fs/bpf /sys/fs/cgroup /sys/kernel/debug /sys/kernel/tracing /dev/shm /dev/pts
mount --bind /sysroot /sysroot
mount -t tmpfs tmpfs /sysroot/run
mkdir /sysroot/run/initramfs
mount --bind / /sysroot/run/initramfs
for folder in proc sys dev; do mount --move "/$folder" "/sysroot/$folder"; done
cd /sysroot
mount --move . /
exec chroot . /usr/lib/systemd/systemd
