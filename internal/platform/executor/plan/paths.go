package plan

// maxFSString is the longest string that fsconfig(2) takes.
const maxFSString = 255

// Short tells whether fsconfig(2) takes a path as it is, where it may be one of several.
func Short(path string) bool {
	for i := range len(path) {
		if c := path[i]; c == '\\' || c == ',' || c == ':' {
			return false
		}
	}
	return len(path) <= maxFSString
}

// coverable are the files of /proc that may be mounted over: those that tell of the
// machine's resources, in whose place lxcfs and its like show the container's, and two
// that checkpoints and FIPS mode are known to replace. Programs trust the rest: a volume in its
// place tells a runtime, or whoever is set up by writing to /proc, what it likes
// (CVE-2019-16884, CVE-2019-19921), and hides what is masked and read-only.
var coverable = [...]string{
	"/cpuinfo", "/diskstats", "/loadavg", "/meminfo", "/slabinfo", "/stat", "/swaps", "/uptime",
	"/sys/crypto/fips_enabled", "/sys/kernel/ns_last_pid",
}

// Coverable tells whether something may be mounted over a path below /proc.
func Coverable(below string) bool {
	for _, name := range coverable {
		if below == name {
			return true
		}
	}
	return false
}
