package child

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

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
	s.home = plan.HomeOf(string(table), uid)
}
