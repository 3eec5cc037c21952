package main

import (
	"bufio"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is a set of measurements of one thing, in milliseconds.
type sample []float64

func (s *sample) add(d time.Duration) { *s = append(*s, float64(d)/float64(time.Millisecond)) }

// at returns the value below which the share p of the sample lies.
func (s sample) at(p float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	o := slices.Sorted(slices.Values(s))
	return o[min(len(o)-1, int(p*float64(len(o))))]
}

// cpuTime reads the CPU time that a cgroup and all below it have used. Unlike wall
// time it hardly moves with what else the machine does. path is relative to the
// hierarchy's root.
func cpuTime(path string) (time.Duration, error) {
	if raw, err := os.ReadFile("/sys/fs/cgroup/cpuacct" + path + "/cpuacct.usage"); err == nil {
		ns, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		return time.Duration(ns), err
	}
	us, err := field("/sys/fs/cgroup"+path+"/cpu.stat", "usage_usec")
	return time.Duration(us) * time.Microsecond, err
}

// measureGroup makes a cgroup in the hierarchy that counts CPU time and returns its
// path, the function that puts a process into it, and the one that removes it.
func measureGroup(name string) (path string, enter func(pid int) error, remove func(), err error) {
	dir := "/sys/fs/cgroup/cpuacct/" + name
	if _, err := os.Stat("/sys/fs/cgroup/cpuacct/cpuacct.usage"); err != nil {
		dir = "/sys/fs/cgroup/" + name
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, nil, err
	}
	enter = func(pid int) error {
		return os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0)
	}
	remove = func() { removeGroups(dir) }
	return "/" + name, enter, remove, nil
}

// removeGroups removes a cgroup directory and the empty ones below it.
func removeGroups(dir string) {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		if e.IsDir() {
			removeGroups(filepath.Join(dir, e.Name()))
		}
	}
	os.Remove(dir)
}

// pss returns the proportional set size, in KiB, of the processes that match.
func pss(match func(pid int, cmdline string) bool) (kib float64, count int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		raw, err := os.ReadFile(d + "/cmdline")
		if err != nil || len(raw) == 0 || !match(pid, strings.ReplaceAll(strings.TrimRight(string(raw), "\x00"), "\x00", " ")) {
			continue
		}
		if v, err := field(d+"/smaps_rollup", "Pss:"); err == nil {
			kib += v
			count++
		}
	}
	return kib, count
}

// field returns the number after key in a file of "key value" lines.
func field(file, key string) (float64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if w := strings.Fields(s.Text()); len(w) > 1 && w[0] == key {
			return strconv.ParseFloat(w[1], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, key)
}
