package child

import "golang.org/x/sys/unix"

// setHome finds the user's home directory in the container's /etc/passwd, as the mounts and
// masks let it be seen. Where it is not to be had, or relative, it is the root directory.
func (s *state) setHome(uid uint64) {
	s.home = "/"
	// Not a FIFO that nobody writes to, and no device.
	fd, err := s.open("/etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	// In one piece: nothing is collected here.
	table := make([]byte, 0, min(max(st.Size, 0), 4<<20)+4096)
	for len(table) < 4<<20 {
		var buf [4096]byte
		n, err := unix.Read(fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		table = append(table, buf[:n]...)
	}
	if home := homeOf(string(table), uid); home != "" && home[0] == '/' {
		s.home = home
	}
}

// homeOf returns the home directory of the first user with that number (passwd(5)), ""
// where there is none.
func homeOf(table string, uid uint64) string {
	want := itoa(int(uid))
	for len(table) > 0 {
		var field [7]string // name, password, uid, gid, comment, home, shell
		n, start, i := 0, 0, 0
		for ; ; i++ {
			if i == len(table) || table[i] == '\n' || table[i] == ':' {
				if n < len(field) {
					field[n] = table[start:i]
				}
				n++
				start = i + 1
			}
			if i == len(table) || table[i] == '\n' {
				break
			}
		}
		table = table[min(i+1, len(table)):]
		if n >= 6 && field[2] == want {
			for j := range len(field[5]) {
				if field[5][j] == 0 {
					return ""
				}
			}
			return field[5]
		}
	}
	return ""
}
