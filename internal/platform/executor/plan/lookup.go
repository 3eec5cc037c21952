package plan

// Candidates are the paths at which execvp(3) would look for a program, in order.
func Candidates(file, path string) (list []string) {
	for i := range len(file) {
		if file[i] == '/' {
			return []string{file}
		}
	}
	for start, i := 0, 0; i <= len(path); i++ {
		if i < len(path) && path[i] != ':' {
			continue
		}
		dir := path[start:i]
		start = i + 1
		if dir == "" {
			dir = "."
		}
		list = append(list, dir+"/"+file)
	}
	return list
}

// Errors of execve(2) that have a hint.
const (
	enoent  = 2
	e2big   = 7
	enoexec = 8
)

// ExecErrors are the errors of execve(2) that have an ExecHint of their own, and 0 for any other.
var ExecErrors = [...]uint64{enoent, enoexec, e2big, 0}

// ExecHint says what is to be known of an error of execve(2) after the program was found.
func ExecHint(errno uint64) string {
	switch errno {
	case enoent:
		return "the file is there, but what it needs to run is not: the interpreter of its first line, or its loader"
	case enoexec:
		return "not a program for this machine: a script without a #! line, or a binary for another architecture"
	case e2big:
		return "arguments and environment together are too long"
	}
	return ""
}
