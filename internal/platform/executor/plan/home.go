package plan

// HomeOf returns the home directory of the first user with that number in a table of users
// (passwd(5)), the root directory where there is none or it is relative.
func HomeOf(table string, uid uint64) string {
	if home := homeOf(table, uid); home != "" && home[0] == '/' {
		return home
	}
	return "/"
}

// homeOf is HomeOf as it is written there, "" where there is none.
func homeOf(table string, uid uint64) string {
	want := decimal(uid)
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

// decimal is strconv.FormatUint without the package.
func decimal(n uint64) string {
	var b [20]byte
	for i := len(b) - 1; ; i-- {
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}
