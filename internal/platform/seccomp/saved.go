package seccomp

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// saved is how a program begins that is kept in a file: its form, and for whom it is.
var saved = "orlop seccomp 1 " + runtime.GOARCH + "\n"

// Instructions are the filter as the kernel has it in memory.
func (p *Program) Instructions() []byte {
	return p.instructions(make([]byte, 0, 8*len(p.Filter)))
}

func (p *Program) instructions(b []byte) []byte {
	for _, in := range p.Filter {
		b = binary.NativeEndian.AppendUint16(b, in.Code)
		b = append(b, in.Jt, in.Jf)
		b = binary.NativeEndian.AppendUint32(b, in.K)
	}
	return b
}

// MarshalBinary is for a file of this machine, which is read again before the next boot.
func (p *Program) MarshalBinary() ([]byte, error) {
	b := append(make([]byte, 0, len(saved)+10+8*len(p.Filter)), saved...)
	b = binary.LittleEndian.AppendUint64(b, uint64(p.Flags))
	for _, is := range []bool{p.Notify, p.Kills} {
		if is {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return p.instructions(b), nil
}

// UnmarshalBinary refuses what MarshalBinary has not made, or made for another processor.
func (p *Program) UnmarshalBinary(data []byte) error {
	rest, ok := strings.CutPrefix(string(data), saved)
	if !ok || len(rest) < 18 || (len(rest)-10)%8 != 0 || (len(rest)-10)/8 > unix.BPF_MAXINSNS || rest[8] > 1 || rest[9] > 1 {
		return errors.New("seccomp: the file has no program in it")
	}
	b := []byte(rest)
	*p = Program{Flags: uint(binary.LittleEndian.Uint64(b)), Notify: b[8] == 1, Kills: b[9] == 1, Filter: make([]unix.SockFilter, 0, len(b)/8)}
	for b = b[10:]; len(b) > 0; b = b[8:] {
		p.Filter = append(p.Filter, unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])})
	}
	return nil
}
