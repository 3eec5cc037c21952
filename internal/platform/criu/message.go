package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
)

// Type is what CRIU is asked for: criu_req_type.
type Type uint64

// The requests.
const (
	Dump    Type = 1
	Restore Type = 2
	PreDump Type = 4

	notify       Type = 6
	featureCheck Type = 9
	version      Type = 10
)

func (t Type) String() string {
	switch t {
	case Dump:
		return "dump"
	case Restore:
		return "restore"
	case PreDump:
		return "pre-dump"
	case notify:
		return "notification"
	case featureCheck:
		return "check of features"
	case version:
		return "question for its version"
	}
	return fmt.Sprintf("request %d", uint64(t))
}

// CgroupMode is how CRIU treats control groups: criu_cg_mode.
type CgroupMode uint64

// The modes.
const (
	CgroupsIgnore CgroupMode = 0
	CgroupsSoft   CgroupMode = 3
	CgroupsFull   CgroupMode = 4
	CgroupsStrict CgroupMode = 5
)

// Pair is a name that CRIU keeps for something of outside, with what it is.
type Pair struct{ Key, Value string }

// InheritFD is a descriptor of CRIU's that stands for what was outside when it was saved.
type InheritFD struct {
	Key string
	FD  int // CRIU's: see FirstExtra
}

// Options are criu_opts, those that are used.
type Options struct {
	Images, Work    *os.File // directories; without Work the log is in Images
	LogFile         string   // a name in it
	PID             int
	Root            string
	ParentImages    string // relative to Images
	TrackMemory     bool
	LeaveRunning    bool
	ExtUnixSockets  bool
	TCPEstablished  bool
	TCPSkipInFlight bool
	TCPClose        bool
	EvasiveDevices  bool
	ShellJob        bool
	FileLocks       bool
	LinkRemap       bool
	AutoDedup       bool
	LazyPages       bool
	OrphanPtsMaster bool // tells of terminals whose masters are outside
	Sibling         bool // what is restored becomes our child, and not CRIU's
	Cgroups         CgroupMode
	CgroupRoots     []Pair // by controller: where the saved groups' top is
	FreezeCgroup    string // the directory of a group that is frozen meanwhile
	EmptyNamespaces uint32 // CLONE_NEWNET: one is made, but what is in it is not saved
	Mounts          []Pair // of outside: by mount point the name; when restoring, by name the source
	External        []string
	Inherit         []InheritFD
	JoinNamespaces  []Pair // kind and path
	PageServer      string // address
	PagePort        int
	LSMProfile      string
	LSMContext      string
	ConfigFile      string
}

// message is a protobuf message that is being written (protobuf.dev/programming-guides/encoding).
// Zero values are left out.
type message []byte

// The types of what follows a field's number.
const (
	varint  = 0
	fixed64 = 1
	bytes   = 2
	fixed32 = 5
)

func (m *message) tag(field, kind uint64) { *m = binary.AppendUvarint(*m, field<<3|kind) }

func (m *message) number(field, v uint64) {
	m.tag(field, varint)
	*m = binary.AppendUvarint(*m, v)
}

func (m *message) bool(field uint64, v bool) {
	if v {
		m.number(field, 1)
	}
}

func (m *message) string(field uint64, s string) {
	if s != "" {
		m.message(field, message(s))
	}
}

func (m *message) message(field uint64, sub message) {
	m.tag(field, bytes)
	*m = append(binary.AppendUvarint(*m, uint64(len(sub))), sub...)
}

func (m *message) pairs(field uint64, list []Pair) {
	for _, p := range list {
		var sub message
		sub.string(1, p.Key)
		sub.string(2, p.Value)
		m.message(field, sub)
	}
}

// logLevel is that of CRIU's log: 4 is all but what is said in loops.
const logLevel = 4

func (o *Options) encode() (m message) {
	m.number(1, uint64(o.Images.Fd()))
	if o.Work != nil {
		m.number(17, uint64(o.Work.Fd()))
	}
	if o.PID != 0 {
		m.number(2, uint64(o.PID))
	}
	m.bool(3, o.LeaveRunning)
	m.bool(4, o.ExtUnixSockets)
	m.bool(5, o.TCPEstablished)
	m.bool(6, o.EvasiveDevices)
	m.bool(7, o.ShellJob)
	m.bool(8, o.FileLocks)
	m.number(9, logLevel)
	m.string(10, o.LogFile)
	if o.PageServer != "" {
		var ps message
		ps.string(1, o.PageServer)
		ps.number(2, uint64(o.PagePort))
		m.message(11, ps)
	}
	m.bool(12, true) // notifications
	m.string(13, o.Root)
	m.string(14, o.ParentImages)
	m.bool(15, o.TrackMemory)
	m.bool(16, o.AutoDedup)
	m.bool(18, o.LinkRemap)
	m.pairs(23, o.Mounts)
	m.pairs(25, o.CgroupRoots)
	m.bool(26, o.Sibling)
	for _, f := range o.Inherit {
		var sub message
		sub.string(1, f.Key)
		sub.number(2, uint64(f.FD))
		m.message(27, sub)
	}
	m.number(34, uint64(o.Cgroups))
	for _, e := range o.External {
		m.string(37, e)
	}
	if o.EmptyNamespaces != 0 {
		m.number(38, uint64(o.EmptyNamespaces))
	}
	m.pairs(39, o.JoinNamespaces)
	m.string(44, o.FreezeCgroup)
	m.bool(46, o.TCPSkipInFlight)
	m.bool(48, o.LazyPages)
	m.bool(50, o.OrphanPtsMaster)
	m.string(51, o.ConfigFile)
	m.bool(52, o.TCPClose)
	m.string(53, o.LSMProfile)
	m.string(63, o.LSMContext)
	return m
}

// encode writes a criu_req.
func (r *Request) encode() (m message) {
	m.number(1, uint64(r.Type))
	if r.Options != nil {
		m.message(2, r.Options.encode())
	}
	if r.Type == featureCheck {
		var f message
		f.bool(1, r.features.MemoryTracking)
		f.bool(2, r.features.LazyPages)
		m.message(5, f)
	}
	return m
}

// acknowledge is the criu_req that answers a notification.
func acknowledge(ok bool) (m message) {
	m.number(1, uint64(notify))
	v := uint64(0)
	if ok {
		v = 1
	}
	m.number(3, v)
	return m
}

// response is a criu_resp.
type response struct {
	kind     Type
	success  bool
	pid      int    // of what was restored, or that a notification is about
	script   string // which notification
	errno    int
	message  string
	features Features
	version  Version
}

// parse reads a criu_resp. Fields that are not known are passed over.
func parse(b []byte) (r response, err error) {
	err = fields(b, func(field, n uint64, s []byte) error {
		switch field {
		case 1:
			r.kind = Type(n)
		case 2:
			r.success = n != 0
		case 4: // criu_restore_resp
			return fields(s, func(field, n uint64, _ []byte) error {
				if field == 1 {
					r.pid = int(int32(n))
				}
				return nil
			})
		case 5: // criu_notify
			return fields(s, func(field, n uint64, s []byte) error {
				switch field {
				case 1:
					r.script = string(s)
				case 2:
					r.pid = int(int32(n))
				}
				return nil
			})
		case 7:
			r.errno = int(int32(n))
		case 8: // criu_features
			return fields(s, func(field, n uint64, _ []byte) error {
				switch field {
				case 1:
					r.features.MemoryTracking = n != 0
				case 2:
					r.features.LazyPages = n != 0
				}
				return nil
			})
		case 9:
			r.message = string(s)
		case 10: // criu_version
			return fields(s, func(field, n uint64, _ []byte) error {
				switch n := Version(min(n, 99)); field {
				case 1:
					r.version += n * 10000
				case 2:
					r.version += n * 100
				case 4:
					r.version += n
				}
				return nil
			})
		}
		return nil
	})
	return r, err
}

var errMessage = errors.New("it is not a protobuf message")

// fields calls each with every field of a message: with its number, or with its bytes.
func fields(b []byte, each func(field, n uint64, s []byte) error) error {
	next := func() (uint64, error) {
		v, size := binary.Uvarint(b)
		if size <= 0 {
			return 0, errMessage
		}
		b = b[size:]
		return v, nil
	}
	for len(b) > 0 {
		tag, err := next()
		if err != nil {
			return err
		}
		var n, size uint64
		switch tag & 7 {
		case varint:
			n, err = next()
		case bytes:
			size, err = next()
		case fixed64:
			size = 8
		case fixed32:
			size = 4
		default:
			err = errMessage
		}
		if err == nil && size > uint64(len(b)) || tag>>3 == 0 || tag > math.MaxUint32 {
			err = errMessage
		}
		if err != nil {
			return err
		}
		var s []byte
		if tag&7 == bytes {
			s = b[:size]
		}
		b = b[size:]
		if err := each(tag>>3, n, s); err != nil {
			return err
		}
	}
	return nil
}
