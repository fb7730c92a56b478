"""Strings, words, files."""
# The plain textbook way to write each of these is the point, not the shortest.
# mypy: ignore-errors
# ruff: noqa: B905, SIM102

import collections
import json
import re
import string


def reverse_string(text: str) -> str:
    """Reverse a string.

    >>> reverse_string("abc")
    'cba'
    """
    return text[::-1]


def reverse_string_v2(text: str) -> str:
    """Return a string with its characters in reverse order.

    >>> reverse_string_v2("hello")
    'olleh'
    """
    result = ""
    for char in text:
        result = char + result
    return result


def is_palindrome(text: str) -> bool:
    """Check whether a string reads the same in both directions.

    >>> is_palindrome("level")
    True
    """
    return text == text[::-1]


def is_palindrome_v2(text: str) -> bool:
    """Check whether a text is a palindrome, ignoring case and punctuation.

    >>> is_palindrome_v2("A man, a plan, a canal: Panama")
    True
    """
    cleaned = "".join(char.lower() for char in text if char.isalnum())
    return cleaned == cleaned[::-1]


def is_palindrome_v3(text: str) -> bool:
    """Check whether a string is a palindrome, using two pointers.

    >>> is_palindrome_v3("abca")
    False
    """
    left, right = 0, len(text) - 1
    while left < right:
        if text[left] != text[right]:
            return False
        left += 1
        right -= 1
    return True


def count_vowels(text: str) -> int:
    """Count the vowels in a text.

    >>> count_vowels("hello")
    2
    """
    count = 0
    for char in text.lower():
        if char in "aeiou":
            count += 1
    return count


def count_vowels_v2(text: str) -> int:
    """Return the number of vowels in a string.

    >>> count_vowels_v2("Python")
    1
    """
    return sum(1 for char in text if char.lower() in "aeiou")


def remove_vowels(text: str) -> str:
    """Remove all vowels from a string.

    >>> remove_vowels("hello")
    'hll'
    """
    return "".join(char for char in text if char.lower() not in "aeiou")


def count_words(text: str) -> int:
    """Count the words in a text.

    >>> count_words("one two three")
    3
    """
    return len(text.split())


def word_frequencies(text: str) -> dict[str, int]:
    """Count how often each word occurs in a text.

    >>> word_frequencies("a b a")
    {'a': 2, 'b': 1}
    """
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def word_frequencies_v2(text: str) -> dict:
    """Return a dictionary that maps each word of a text to its count.

    >>> word_frequencies_v2("to be or not to be")["be"]
    2
    """
    counts = collections.defaultdict(int)
    for word in text.split():
        counts[word] += 1
    return dict(counts)


def most_common_words(text: str, n: int = 10) -> list[tuple[str, int]]:
    """Return the n most common words of a text with their counts.

    >>> most_common_words("a b a", 1)
    [('a', 2)]
    """
    words = re.findall(r"\w+", text.lower())
    return collections.Counter(words).most_common(n)


def char_frequencies(text: str) -> dict[str, int]:
    """Count how often each character occurs in a string.

    >>> char_frequencies("aba")
    {'a': 2, 'b': 1}
    """
    counts = {}
    for char in text:
        if char in counts:
            counts[char] += 1
        else:
            counts[char] = 1
    return counts


def count_char(text: str, char: str) -> int:
    """Count how often a character occurs in a string.

    >>> count_char("banana", "a")
    3
    """
    count = 0
    for c in text:
        if c == char:
            count += 1
    return count


def capitalize_words(text: str) -> str:
    """Capitalize the first letter of each word.

    >>> capitalize_words("hello world")
    'Hello World'
    """
    return " ".join(word.capitalize() for word in text.split())


def reverse_words(text: str) -> str:
    """Reverse the order of the words in a text.

    >>> reverse_words("one two three")
    'three two one'
    """
    return " ".join(reversed(text.split()))


def longest_word(text: str) -> str:
    """Return the longest word of a text.

    >>> longest_word("a bbb cc")
    'bbb'
    """
    longest = ""
    for word in text.split():
        if len(word) > len(longest):
            longest = word
    return longest


def longest_word_v2(text: str) -> str:
    """Find the longest word in a text.

    >>> longest_word_v2("one three two")
    'three'
    """
    return max(text.split(), key=len)


def is_anagram(a: str, b: str) -> bool:
    """Check whether two words are anagrams of each other.

    >>> is_anagram("listen", "silent")
    True
    """
    return sorted(a.lower()) == sorted(b.lower())


def is_anagram_v2(a: str, b: str) -> bool:
    """Return True if two strings have the same letters.

    >>> is_anagram_v2("abc", "abd")
    False
    """
    return collections.Counter(a) == collections.Counter(b)


def group_anagrams(words: list[str]) -> list[list[str]]:
    """Group words that are anagrams of each other.

    >>> group_anagrams(["eat", "tea", "bat"])
    [['eat', 'tea'], ['bat']]
    """
    groups = {}
    for word in words:
        key = "".join(sorted(word))
        groups.setdefault(key, []).append(word)
    return list(groups.values())


def is_pangram(text: str) -> bool:
    """Check whether a text uses every letter of the alphabet.

    >>> is_pangram("The quick brown fox jumps over the lazy dog")
    True
    """
    return set(string.ascii_lowercase) <= set(text.lower())


def caesar_cipher(text: str, shift: int) -> str:
    """Encrypt a text with a Caesar cipher.

    >>> caesar_cipher("abc", 1)
    'bcd'
    """
    result = ""
    for char in text:
        if char.isalpha():
            base = ord("A") if char.isupper() else ord("a")
            result += chr((ord(char) - base + shift) % 26 + base)
        else:
            result += char
    return result


def run_length_encode(text: str) -> list[tuple[str, int]]:
    """Encode a string as a list of characters and their run lengths.

    >>> run_length_encode("aab")
    [('a', 2), ('b', 1)]
    """
    result = []
    for char in text:
        if result and result[-1][0] == char:
            result[-1] = (char, result[-1][1] + 1)
        else:
            result.append((char, 1))
    return result


def run_length_decode(pairs: list[tuple[str, int]]) -> str:
    """Decode a list of characters and run lengths to a string.

    >>> run_length_decode([("a", 2), ("b", 1)])
    'aab'
    """
    return "".join(char * count for char, count in pairs)


def compress(text: str) -> str:
    """Compress a string by counting repeated characters.

    >>> compress("aaab")
    'a3b1'
    """
    if not text:
        return ""
    result = []
    count = 1
    for i in range(1, len(text)):
        if text[i] == text[i - 1]:
            count += 1
        else:
            result.append(text[i - 1] + str(count))
            count = 1
    result.append(text[-1] + str(count))
    return "".join(result)


def longest_common_prefix(words: list[str]) -> str:
    """Return the longest common prefix of a list of words.

    >>> longest_common_prefix(["flower", "flow", "flight"])
    'fl'
    """
    if not words:
        return ""
    prefix = words[0]
    for word in words[1:]:
        while not word.startswith(prefix):
            prefix = prefix[:-1]
    return prefix


def levenshtein(a: str, b: str) -> int:
    """Return the edit distance between two strings.

    >>> levenshtein("kitten", "sitting")
    3
    """
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            cost = 0 if x == y else 1
            current.append(min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + cost))
        previous = current
    return previous[-1]


def hamming_distance(a: str, b: str) -> int:
    """Count the positions at which two strings differ.

    >>> hamming_distance("karolin", "kathrin")
    3
    """
    if len(a) != len(b):
        raise ValueError("strings must have the same length")
    return sum(x != y for x, y in zip(a, b))


def longest_common_subsequence(a: str, b: str) -> int:
    """Return the length of the longest common subsequence of two strings.

    >>> longest_common_subsequence("abcde", "ace")
    3
    """
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            if a[i - 1] == b[j - 1]:
                table[i][j] = table[i - 1][j - 1] + 1
            else:
                table[i][j] = max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def to_snake_case(name: str) -> str:
    """Convert a name from camel case to snake case.

    >>> to_snake_case("helloWorld")
    'hello_world'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def to_camel_case(name: str) -> str:
    """Convert a name from snake case to camel case.

    >>> to_camel_case("hello_world")
    'helloWorld'
    """
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def slugify(text: str) -> str:
    """Convert a text to a slug for a URL.

    >>> slugify("Hello, World!")
    'hello-world'
    """
    text = re.sub(r"[^\w\s-]", "", text.lower())
    return re.sub(r"[\s_-]+", "-", text).strip("-")


def truncate(text: str, length: int, suffix: str = "...") -> str:
    """Shorten a text to a maximum length.

    >>> truncate("hello world", 8)
    'hello...'
    """
    if len(text) <= length:
        return text
    return text[: length - len(suffix)] + suffix


def first_unique_char(text: str) -> str:
    """Return the first character that occurs only once, or None.

    >>> first_unique_char("aabcb")
    'c'
    """
    counts = collections.Counter(text)
    for char in text:
        if counts[char] == 1:
            return char
    return None


def remove_punctuation(text: str) -> str:
    """Remove all punctuation from a text.

    >>> remove_punctuation("Hi, there!")
    'Hi there'
    """
    return "".join(char for char in text if char not in string.punctuation)


def remove_whitespace(text: str) -> str:
    """Remove all whitespace from a string.

    >>> remove_whitespace(" a b ")
    'ab'
    """
    return "".join(text.split())


def is_balanced(text: str) -> bool:
    """Check whether the brackets in a text are balanced.

    >>> is_balanced("([]{})")
    True
    """
    pairs = {")": "(", "]": "[", "}": "{"}
    stack = []
    for char in text:
        if char in "([{":
            stack.append(char)
        elif char in pairs:
            if not stack or stack.pop() != pairs[char]:
                return False
    return not stack


def is_valid_email(address: str) -> bool:
    """Check whether a string looks like an email address.

    >>> is_valid_email("user@example.com")
    True
    """
    pattern = r"^[\w.+-]+@[\w-]+\.[\w.-]+$"
    return re.match(pattern, address) is not None


def is_number(text: str) -> bool:
    """Check whether a string can be converted to a number.

    >>> is_number("1.5")
    True
    """
    try:
        float(text)
    except ValueError:
        return False
    return True


def extract_numbers(text: str) -> list[int]:
    """Return all integers that occur in a text.

    >>> extract_numbers("a1b22")
    [1, 22]
    """
    return [int(number) for number in re.findall(r"\d+", text)]


def substrings(text: str) -> list[str]:
    """Return all substrings of a string.

    >>> substrings("ab")
    ['a', 'ab', 'b']
    """
    return [text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)]


def longest_unique_substring(text: str) -> int:
    """Return the length of the longest substring without repeated characters.

    >>> longest_unique_substring("abcabcbb")
    3
    """
    seen = {}
    start = 0
    longest = 0
    for i, char in enumerate(text):
        if char in seen and seen[char] >= start:
            start = seen[char] + 1
        seen[char] = i
        longest = max(longest, i - start + 1)
    return longest


def acronym(text: str) -> str:
    """Make an acronym from the first letters of a phrase.

    >>> acronym("random access memory")
    'RAM'
    """
    return "".join(word[0].upper() for word in text.split())


def greet(name: str) -> str:
    """Return a greeting for a person.

    >>> greet("Ada")
    'Hello, Ada!'
    """
    return f"Hello, {name}!"


def parse_key_values(text: str) -> dict[str, str]:
    """Parse lines of the form key=value into a dictionary.

    >>> parse_key_values("a=1")
    {'a': '1'}
    """
    result = {}
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key, _, value = line.partition("=")
        result[key.strip()] = value.strip()
    return result


def parse_csv_line(line: str, separator: str = ",") -> list[str]:
    """Split a line of comma-separated values.

    >>> parse_csv_line("a, b")
    ['a', 'b']
    """
    return [field.strip() for field in line.split(separator)]


def format_size(size: int) -> str:
    """Format a number of bytes for people to read.

    >>> format_size(2048)
    '2.0 KB'
    """
    for unit in ["B", "KB", "MB", "GB"]:
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


def format_time(seconds: int) -> str:
    """Format a number of seconds as hours, minutes and seconds.

    >>> format_time(3661)
    '01:01:01'
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}"


def read_file(path: str) -> str:
    """Read a text file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def read_lines(path: str) -> list[str]:
    """Read the lines of a file without their line ends."""
    with open(path) as file:
        return [line.rstrip("\n") for line in file]


def write_file(path: str, text: str) -> None:
    """Write a text to a file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def count_lines(path: str) -> int:
    """Count the lines of a file."""
    with open(path) as file:
        return sum(1 for line in file)


def load_json(path: str) -> dict:
    """Load data from a JSON file."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def save_json(path: str, data: dict) -> None:
    """Save data to a JSON file."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)


def load_config(path: str, default: dict | None = None) -> dict:
    """Load a configuration file, or return a default if it does not exist."""
    try:
        with open(path) as file:
            return json.load(file)
    except FileNotFoundError:
        return default or {}


def longest_palindrome(text: str) -> str:
    """Return the longest palindrome inside a string.

    >>> longest_palindrome("babcd")
    'bab'
    """
    best = ""
    for center in range(len(text)):
        for low, high in [(center, center), (center, center + 1)]:
            while low >= 0 and high < len(text) and text[low] == text[high]:
                low -= 1
                high += 1
            if high - low - 1 > len(best):
                best = text[low + 1 : high]
    return best


def swap_case(text: str) -> str:
    """Swap upper and lower case in a string.

    >>> swap_case("aB")
    'Ab'
    """
    return "".join(char.lower() if char.isupper() else char.upper() for char in text)


def print_triangle(n: int) -> None:
    """Print a triangle of stars."""
    for i in range(1, n + 1):
        print("*" * i)


ALIASES = {
    "reverse_string": ("reverse_string", "reverse", "reversed_string"),
    "is_palindrome": ("is_palindrome", "is_palindrome", "palindrome", "check_palindrome"),
    "count_words": ("count_words", "word_count"),
    "word_frequencies": ("word_frequencies", "count_words", "word_count", "word_frequency"),
    "char_frequencies": ("char_frequencies", "count_chars", "char_count", "count_letters"),
    "is_anagram": ("is_anagram", "are_anagrams", "anagram"),
    "caesar_cipher": ("caesar_cipher", "caesar", "caesar_encrypt", "encrypt"),
    "levenshtein": ("levenshtein", "edit_distance", "levenshtein_distance"),
    "longest_common_subsequence": ("longest_common_subsequence", "lcs", "lcs_length"),
    "to_snake_case": ("to_snake_case", "camel_to_snake"),
    "to_camel_case": ("to_camel_case", "snake_to_camel"),
    "is_balanced": ("is_balanced", "balanced_parentheses", "valid_parentheses", "is_valid", "check_brackets"),
    "is_valid_email": ("is_valid_email", "validate_email", "check_email"),
    "load_json": ("load_json", "read_json"),
    "save_json": ("save_json", "write_json"),
    "greet": ("greet", "hello", "say_hello", "greeting"),
    "capitalize_words": ("capitalize_words", "title_case"),
    "format_size": ("format_size", "human_readable_size", "format_bytes"),
}
