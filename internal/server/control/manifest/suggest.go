package manifest

import "strings"

// nearest returns the name that was probably meant, or "".
func nearest(word string, names []string) string {
	if len(word) > 64 {
		return ""
	}
	best, distance := "", 1+max(1, len(word)/4)
	for _, n := range names {
		if strings.EqualFold(n, word) {
			return n
		}
		if d := editDistance(strings.ToLower(word), strings.ToLower(n)); d < distance {
			best, distance = n, d
		}
	}
	if best != "" {
		return best
	}
	for _, n := range names { // mounts → volumeMounts, port → ports
		if len(word) >= 4 && (strings.HasSuffix(strings.ToLower(n), strings.ToLower(word)) || strings.HasPrefix(strings.ToLower(n), strings.ToLower(word))) {
			return n
		}
	}
	for _, n := range names { // img → image
		if len(word) >= 3 && n != "" && len(n) <= 2*len(word) && word[0] == n[0] && letters(word, n) {
			return n
		}
	}
	return ""
}

// letters tells whether word's letters are in n, in their order.
func letters(word, n string) bool {
	i := 0
	for j := 0; i < len(word) && j < len(n); j++ {
		if word[i] == n[j] {
			i++
		}
	}
	return i == len(word)
}

// editDistance is Levenshtein's, with a swap of neighbours as one step.
func editDistance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
