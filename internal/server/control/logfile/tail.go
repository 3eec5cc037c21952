package logfile

import (
	"bytes"
	"io"
	"os"
)

// fromEnd returns the offset at which the last n lines of the file begin, and how
// many lines there are from it on: n, or fewer if the file has no more (the offset
// is then 0). A line is a record that ends one (tag F) with the parts before it; in
// the newest file, the parts of a line that is not ended count as one more.
func fromEnd(f *os.File, n int64, newest bool) (offset, found int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	const step = 64 << 10
	end := info.Size()
	var tail []byte // what is known from end on, of records whose beginning is not
	first := newest // no record was seen yet
	for end > 0 {
		size := min(step, end)
		block := make([]byte, size, size+int64(len(tail)))
		if _, err := f.ReadAt(block, end-size); err != nil && err != io.EOF {
			return 0, 0, err
		}
		end -= size
		block = append(block, tail...)
		// Records from the last to the first whose beginning is in the block.
		for {
			cut := bytes.TrimSuffix(block, []byte{'\n'})
			i := bytes.LastIndexByte(cut, '\n')
			if i < 0 && end > 0 {
				break
			}
			record := block[i+1:]
			if len(record) == 0 {
				break
			}
			_, _, part, _, ok := parse(record)
			if !ok || !part || first {
				if found == n {
					return end + int64(len(block)), found, nil
				}
				found++
			}
			first = false
			block = block[:i+1]
			if i < 0 {
				break
			}
		}
		tail = block
	}
	return 0, found, nil
}
