# Facts about a device, for any POSIX shell: Debian's, BusyBox's, Android's mksh with toybox. Nothing is written.
# A line "@name" begins a section; machine.py reads them. What a system does not have leaves its section empty.
PATH=$PATH:/usr/sbin:/sbin
LC_ALL=C
export PATH LC_ALL
exec 2>/dev/null
has() { command -v "$1" >/dev/null; }
section() { echo; echo "@$1"; }

section kernel; uname -s; uname -m; uname -r
# Of a program here: a 64-bit kernel may have a 32-bit system on it.
section elf; head -c 20 "/proc/$$/exe" | od -An -tx1
section model
if [ -r /proc/device-tree/model ]; then tr -d '\000' </proc/device-tree/model; echo
elif has getprop; then echo "$(getprop ro.product.manufacturer) $(getprop ro.product.model)"
else cat /sys/class/dmi/id/product_name; fi
section cpuinfo; cat /proc/cpuinfo
section meminfo; cat /proc/meminfo
section cgroup
for line in $(cat /proc/self/cgroup); do
  case $line in
    0::*) group=/sys/fs/cgroup${line#0::}; echo "$(cat "$group/memory.max") $(cat "$group/memory.current")" ;;
    *:memory:*) group=/sys/fs/cgroup/memory${line##*:}
      echo "$(cat "$group/memory.limit_in_bytes") $(cat "$group/memory.usage_in_bytes")" ;;
  esac
done
section boot; cat /proc/sys/kernel/random/boot_id; cat /proc/uptime
section time; date +%s
section synchronized; has timedatectl && timedatectl show -p NTPSynchronized --value
section os; cat /etc/os-release
if has getprop; then
  echo "PRETTY_NAME=\"Android $(getprop ro.build.version.release)\""; echo "ANDROID_API=$(getprop ro.build.version.sdk)"
  echo "ANDROID_SOC=$(getprop ro.soc.model)"; echo "ANDROID_ABI=$(getprop ro.product.cpu.abi)"
fi
section libc
if has getconf && getconf GNU_LIBC_VERSION; then :; else ldd --version | head -n 1; ls -d /lib/ld-musl-* /system/bin/linker64; fi
section user; id -u; id -un; id -Gn; echo "$HOME"
if has getprop; then place=/data/local/tmp; else place=$HOME; fi
[ -d "$place" ] || place=/tmp
section place; echo "$place"; if [ -w "$place" ]; then echo writable; else echo read-only; fi
section disk; df -Pk "$place" | tail -n 1
section mount; while read -r _ at _ options _; do echo "$options $at"; done </proc/mounts
section python
for name in python3 python3.10 python3.11 python3.12 python3.13 python3.14; do
  has $name && $name -c 'import sys
missing = []
for name in ("ctypes", "json", "zlib", "zipfile", "subprocess", "multiprocessing", "sqlite3"):
    try: __import__(name)
    except ImportError: missing.append(name)
versions = []
for name in ("numpy", "PIL", "ai_edge_litert", "tflite_runtime", "tokenizers"):
    try:
        from importlib import metadata
        versions.append(name + "=" + metadata.version({"PIL": "pillow"}.get(name, name).replace("_", "-")))
    except Exception: pass
print("%d.%d.%d" % sys.version_info[:3], sys.executable, sys.maxsize.bit_length() + 1, ",".join(missing) or "-", ",".join(versions) or "-")'
done
section prefix
for prefix in "$place/hypervl-edge" "$HOME/.local/share/hypervl-edge" /opt/hypervl-edge /usr/lib/hypervl-edge; do
  if [ -f "$prefix/current" ]; then echo "prefix=$prefix"; cat "$prefix/current"; break; fi
done
section libraries
for folder in /usr/lib /usr/lib/*-linux-* /lib/*-linux-* /usr/local/lib /opt/vc/lib /system/lib64 /vendor/lib64 /system/vendor/lib64; do
  for name in libvulkan.so.1 libvulkan.so libOpenCL.so.1 libOpenCL.so libEGL.so.1 libneuralnetworks.so \
    libedgetpu.so.1 libhailort.so libQnnHtp.so libneuronusdk_adapter.mtk.so libstdc++.so.6; do
    [ -e "$folder/$name" ] && echo "$folder/$name"
  done
done
section icd; ls -d /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json
section nodes
for node in /dev/dri/renderD* /dev/video* /dev/media* /dev/apex_* /dev/hailo* /dev/galcore /dev/mali* /dev/kgsl-3d0 /dev/vchiq; do
  if [ -r "$node" ] && [ -w "$node" ]; then echo "open $node"; elif [ -e "$node" ]; then echo "closed $node"; fi
done
section cpufreq
for policy in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  [ -d "$policy" ] && echo "$(cat "$policy/scaling_governor") $(cat "$policy/scaling_cur_freq") $(cat "$policy/cpuinfo_max_freq")"
done
section thermal
for zone in /sys/class/thermal/thermal_zone*; do [ -d "$zone" ] && echo "$(cat "$zone/temp") $(cat "$zone/type")"; done
section power
for chip in /sys/class/hwmon/hwmon*; do
  for file in "$chip"/power*_input "$chip"/curr*_input; do [ -e "$file" ] && echo "$(cat "$chip/name") ${file##*/}"; done
done
section throttled
if has vcgencmd; then vcgencmd get_throttled
elif [ -r /sys/devices/platform/soc/soc:firmware/get_throttled ]; then
  echo "throttled=0x$(cat /sys/devices/platform/soc/soc:firmware/get_throttled)"
fi
section tools
for name in tar gzip sha256sum mv mkdir cp ln wc head df systemctl rpicam-still libcamera-still v4l2-ctl vcgencmd; do
  has $name && echo $name
done
section end
exit 0
