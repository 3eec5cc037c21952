package mount

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fiTrim is FITRIM, _IOWR('X', 121, struct fstrim_range) (linux/fs.h).
const fiTrim = 0xc0185879

// Trim tells the device below the filesystem mounted at dir which blocks are not
// used (FITRIM), and returns how many bytes they were.
func Trim(dir string) (int64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r := struct{ start, length, minLength uint64 }{length: ^uint64(0)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiTrim, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return 0, &os.PathError{Op: "fstrim", Path: dir, Err: errno}
	}
	return int64(r.length), nil
}
