# Facts about a device, for any POSIX shell: Debian's, BusyBox's, Android's mksh with toybox. Nothing is written.
# A line "@name" begins a section; machine.py reads them. What a system does not have leaves its section empty.
# Numbers are not added here: mksh's have 32 bits. PYTHON may name one more Python to ask.
PATH=$PATH:/usr/sbin:/sbin:/opt/vc/bin
LC_ALL=C
export PATH LC_ALL
exec 2>/dev/null
has() { command -v "$1" >/dev/null; }
section() { echo; echo "@$1"; }
# Into $value, without starting a program: a phone has a hundred thermal zones.
first_line() { value=; read -r value <"$1"; }

section kernel; uname -s; uname -m; uname -r
# Of a program here: a 64-bit kernel may have a 32-bit system on it.
section elf; head -c 20 "/proc/$$/exe" | od -An -tx1
section model
if has getprop; then echo "$(getprop ro.product.manufacturer) $(getprop ro.product.model)"
elif [ -r /proc/device-tree/model ]; then tr -d '\000' </proc/device-tree/model; echo
else cat /sys/class/dmi/id/product_name; fi
section cpuinfo; cat /proc/cpuinfo
section meminfo; cat /proc/meminfo
section swaps; cat /proc/swaps
# Limit, use, and the files of it that the kernel would drop: of our control group and those around it.
rooms() {
  top=$1 group=$1${2%/} limit=$3 used=$4 prefix=$5
  [ -d "$group" ] || group=$top # a container often sees its own part of the tree alone
  while :; do
    if [ -r "$group/$limit" ]; then
      first_line "$group/$limit"; told=$value
      first_line "$group/$used"; told="$told $value"
      [ -r "$group/memory.stat" ] && while read -r key value; do
        case $key in "${prefix}inactive_file" | "${prefix}active_file") told="$told $value" ;; esac
      done <"$group/memory.stat"
      echo "$told"
    fi
    [ "$group" = "$top" ] && break
    group=${group%/*}
  done
}
section cgroup
while IFS=: read -r _ controllers group; do
  case ,$controllers, in
    ,,) rooms /sys/fs/cgroup "$group" memory.max memory.current "" ;;
    *,memory,*) rooms /sys/fs/cgroup/memory "$group" memory.limit_in_bytes memory.usage_in_bytes total_ ;;
  esac
done </proc/self/cgroup
section boot; cat /proc/sys/kernel/random/boot_id; cat /proc/uptime
section time; date +%s
section synchronized
if has timedatectl && has timeout; then timeout 5 timedatectl show -p NTPSynchronized --value; fi
section os
if has getprop; then
  echo "PRETTY_NAME=\"Android $(getprop ro.build.version.release)\""; echo "ANDROID_API=$(getprop ro.build.version.sdk)"
  echo "ANDROID_SOC=$(getprop ro.soc.model)"; echo "ANDROID_ABI=$(getprop ro.product.cpu.abi)"
fi
cat /etc/os-release
section libc
if has getconf && getconf GNU_LIBC_VERSION; then :; else
  has ldd && ldd --version 2>&1 | head -n 2
  ls -d /lib/ld-musl-* /system/bin/linker64 /system/bin/linker
  # What says its version when it is run.
  for file in /lib/libc.so.6 /lib/*-linux-*/libc.so.6 /lib64/libc.so.6; do [ -x "$file" ] && "$file" | head -n 1; done
fi
section user; echo "uid=$(id -u)"; echo "name=$(id -un)"; echo "groups=$(id -Gn)"; echo "home=$HOME"
place=$HOME
has getprop && [ -w /data/local/tmp ] && place=/data/local/tmp
[ -d "$place" ] || place=/tmp
section place; echo "place=$place"; echo "real=$(cd "$place" && pwd -P)"
if [ -w "$place" ]; then echo state=writable; else echo state=read-only; fi
section disk; df -Pk "$place" | tail -n 1
section mount; while read -r _ at _ options _; do echo "$options $at"; done </proc/mounts
section python
asked=
for name in "$PYTHON" python3 python3.10 python3.11 python3.12 python3.13 python3.14; do
  file=$(command -v "$name") || continue
  real=$(readlink -f "$file")
  case $asked in *":$real:"*) continue ;; esac
  # The file of a virtual environment is that of another Python with other packages.
  [ "$name" = "$PYTHON" ] || asked="$asked:${real:-$file}:"
  "$name" -c 'import sys
missing = []
for name in ("ctypes", "decimal", "email", "json", "mmap", "resource", "subprocess", "zipfile", "zlib"):
    try: __import__(name)
    except ImportError: missing.append(name)
versions = []
for name in ("numpy", "pillow", "ai-edge-litert", "tflite-runtime", "tokenizers", "openvino"):
    try:
        from importlib import metadata
        versions.append(name + "=" + metadata.version(name))
    except Exception: pass
told = ("%d.%d.%d" % sys.version_info[:3], sys.executable, str(sys.maxsize.bit_length() + 1),
        ",".join(missing) or "-", ",".join(versions) or "-", sys.prefix)
print("\t".join(told))'
done
section prefix
for prefix in "$place/hypervl-edge" "$HOME/.local/share/hypervl-edge" /opt/hypervl-edge /usr/lib/hypervl-edge; do
  [ -f "$prefix/elsewhere" ] && prefix=$(cat "$prefix/elsewhere")
  if [ -f "$prefix/current" ]; then echo "prefix=$prefix"; cat "$prefix/current"; break; fi
done
section libraries
for folder in /usr/lib /usr/lib64 /usr/lib/*-linux-* /lib/*-linux-* /usr/local/lib /opt/vc/lib /vendor/lib64 /vendor/lib64/egl \
  /odm/lib64 /system/vendor/lib64 /system/lib64 /apex/com.android.neuralnetworks/lib64; do
  [ -d "$folder" ] || continue
  for name in libvulkan.so.1 libvulkan.so libOpenCL.so.1 libOpenCL.so libOpenCL-pixel.so libEGL.so.1 libneuralnetworks.so \
    libedgetpu.so.1 libQnnHtp.so libneuronusdk_adapter.mtk.so libstdc++.so.6; do
    [ -e "$folder/$name" ] && echo "$folder/$name"
  done
  for file in "$folder"/libhailort.so* "$folder"/libopenvino.so*; do [ -e "$file" ] && echo "$file"; done
done
section icd
for file in /usr/share/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json; do
  [ -e "$file" ] && echo "$file"
done
echo "$VK_DRIVER_FILES:$VK_ICD_FILENAMES" | tr ':' '\n'
section nodes
for node in /dev/dri/renderD* /dev/video* /dev/media* /dev/apex_* /dev/hailo* /dev/galcore /dev/mali* /dev/kgsl-3d0 \
  /dev/vcio /dev/vchiq; do
  if [ -r "$node" ] && [ -w "$node" ]; then echo "open $node"; elif [ -e "$node" ]; then echo "closed $node"; fi
done
section cpufreq
for policy in /sys/devices/system/cpu/cpu[0-9]*/cpufreq; do
  [ -d "$policy" ] || continue
  first_line "$policy/scaling_governor"; told=$value
  first_line "$policy/scaling_cur_freq"; told="$told $value"
  first_line "$policy/cpuinfo_max_freq"; echo "$told $value"
done
section thermal
for zone in /sys/class/thermal/thermal_zone*; do
  [ -d "$zone" ] || continue
  first_line "$zone/temp"; told=$value
  first_line "$zone/type"; echo "$told $value"
done
section power
for chip in /sys/class/hwmon/hwmon*; do
  for file in "$chip"/power*_input "$chip"/curr*_input; do
    [ -e "$file" ] && first_line "$chip/name" && echo "$value ${file##*/}"
  done
done
section throttled
has vcgencmd && vcgencmd get_throttled
file=/sys/devices/platform/soc/soc:firmware/get_throttled
[ -r $file ] && first_line $file && echo "throttled=0x$value"
section tools
for name in tar gzip sha256sum mv mkdir cp rm cat ln wc head df systemctl rpicam-still libcamera-still v4l2-ctl vcgencmd; do
  has $name && echo $name
done
section end
exit 0
