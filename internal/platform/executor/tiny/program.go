package tiny

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// Program is a list of system calls, made in order.
type Program struct {
	table, data []byte
	room        int
	channel     uint64
}

// Then says what a program does with the result of a call. The zero value: go on.
type Then uint16

// Skip goes on and leaves out the next n calls, 255 at most.
func Skip(n int) Then { return Then(uint8(n)) }

// End ends the program with a status.
func End(status uint8) Then { return 1<<8 | Then(status) }

// Report ends the program with plan.NotExecuted, after a message (Failed) to its channel.
const Report Then = 2<<8 | plan.NotExecuted

// Results are what happens with a call, by what it returns: an error, zero, or more. What
// follows the error But, if one is named, is what follows zero.
type Results struct {
	Error, Zero, More Then
	But               unix.Errno
}

// Call adds a call. If it fails, the program reports it and ends.
func (p *Program) Call(nr uintptr, args ...uint64) { p.On(Results{Error: Report}, nr, args...) }

// Try adds a call that may fail.
func (p *Program) Try(nr uintptr, args ...uint64) { p.On(Results{}, nr, args...) }

// Fork adds a call that makes a process. The new one goes on, the old one ends with status 0.
func (p *Program) Fork(nr uintptr, args ...uint64) {
	p.On(Results{Error: Report, More: End(0)}, nr, args...)
}

// On adds a call with what follows it.
func (p *Program) On(r Results, nr uintptr, args ...uint64) {
	var words [record / 8]uint64
	words[0] = uint64(nr)
	copy(words[1:7], args)
	words[7] = uint64(r.Error) | uint64(r.Zero)<<16 | uint64(r.More)<<32 | uint64(r.But)<<48
	for _, v := range words {
		p.table = word(p.table, v)
	}
}

// Len is the number of calls so far, and the index of the next.
func (p *Program) Len() int { return len(p.table) / record }

// Channel sets the descriptor to which a failure is reported; it is 3 otherwise.
func (p *Program) Channel(fd uint64) { p.channel = fd }

// Data adds constant bytes and returns their address, a multiple of 8.
func (p *Program) Data(b []byte) uint64 {
	at := base + dataAt + len(p.data)
	p.data = append(p.data, b...)
	p.data = append(p.data, make([]byte, -len(p.data)&7)...)
	return uint64(at)
}

// Words adds constant numbers and returns their address.
func (p *Program) Words(list ...uint64) uint64 {
	var b []byte
	for _, v := range list {
		b = word(b, v)
	}
	return p.Data(b)
}

// Strings adds an array of strings as execve(2) takes it, and returns its address. After
// them come strings that are elsewhere.
func (p *Program) Strings(list []string, more ...uint64) uint64 {
	array := make([]uint64, 0, len(list)+len(more)+1)
	for _, s := range list {
		array = append(array, p.String(s))
	}
	return p.Words(append(append(array, more...), 0)...)
}

// String adds a string as C has them, and returns its address.
func (p *Program) String(s string) uint64 { return p.Data(append([]byte(s), 0)) }

// Room adds n bytes that calls may write to, zero at first, and returns their address, a
// multiple of 8.
func (p *Program) Room(n int) uint64 {
	at := roomBase + p.room
	p.room += (n + 7) &^ 7
	return uint64(at)
}

// Executable returns the program.
func (p *Program) Executable() []byte {
	channel := p.channel
	if channel == 0 {
		channel = 3
	}
	b := executable(callsAddr, dataAt+len(p.data)+len(p.table), p.room)
	put(b, tableField, 8, uint64(base+dataAt+len(p.data)))
	put(b, channelField, 8, channel)
	copy(b[dataAt:], p.data)
	copy(b[dataAt+len(p.data):], p.table)
	return b
}

// Failed reads the message of a program of which a call failed.
func Failed(msg []byte) (call int, errno uint64, ok bool) {
	if len(msg) != 24 || msg[0] != 'x' {
		return 0, 0, false
	}
	return int(load(msg[8:])/record) - 1, -load(msg[16:]), true
}
