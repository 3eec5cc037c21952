package container

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
)

// passwd calls each with the fields of every entry of a password file (passwd(5)) until
// it returns false.
func passwd(r io.Reader, each func(fields []string) bool) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if f := strings.Split(sc.Text(), ":"); len(f) >= 7 && !each(f) {
			return
		}
	}
}

// userName is the name of a user of this machine, "" if it has none.
func userName(uid uint32) (name string) {
	f, err := os.Open("/etc/passwd")
	if err != nil {
		return ""
	}
	defer f.Close()
	want := strconv.FormatUint(uint64(uid), 10)
	passwd(f, func(e []string) bool {
		if e[2] == want {
			name = e[0]
		}
		return name == ""
	})
	return name
}
