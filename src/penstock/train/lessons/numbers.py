"""Arithmetic, number theory, statistics, geometry, matrices."""
# The plain textbook way to write each of these is the point, not the shortest.
# mypy: ignore-errors
# ruff: noqa: B905, SIM110, UP033

import functools
import math


def factorial(n: int) -> int:
    """Return the factorial of a number.

    >>> factorial(5)
    120
    """
    if n <= 1:
        return 1
    return n * factorial(n - 1)


def factorial_v2(n: int) -> int:
    """Compute the factorial of a number with a loop.

    >>> factorial_v2(4)
    24
    """
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result


def factorial_v3(n: int) -> int:
    """Compute n! for a non-negative integer.

    >>> factorial_v3(3)
    6
    """
    if n < 0:
        raise ValueError("n must be non-negative")
    if n == 0:
        return 1
    return n * factorial_v3(n - 1)


def fibonacci(n: int) -> int:
    """Return the n-th Fibonacci number.

    >>> fibonacci(10)
    55
    """
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def fibonacci_v2(n: int) -> int:
    """Return the n-th Fibonacci number by recursion.

    >>> fibonacci_v2(7)
    13
    """
    if n <= 1:
        return n
    return fibonacci_v2(n - 1) + fibonacci_v2(n - 2)


def fibonacci_v3(n: int) -> list[int]:
    """Return a list of the first n Fibonacci numbers.

    >>> fibonacci_v3(6)
    [0, 1, 1, 2, 3, 5]
    """
    result = []
    a, b = 0, 1
    while len(result) < n:
        result.append(a)
        a, b = b, a + b
    return result


def fibonacci_v4(limit: int):
    """Generate the Fibonacci numbers below a limit.

    >>> list(fibonacci_v4(10))
    [0, 1, 1, 2, 3, 5, 8]
    """
    a, b = 0, 1
    while a < limit:
        yield a
        a, b = b, a + b


@functools.lru_cache(maxsize=None)
def fibonacci_v5(n: int) -> int:
    """Return the n-th Fibonacci number, remembering earlier results.

    >>> fibonacci_v5(20)
    6765
    """
    if n < 2:
        return n
    return fibonacci_v5(n - 1) + fibonacci_v5(n - 2)


def gcd(a: int, b: int) -> int:
    """Return the greatest common divisor of two numbers.

    >>> gcd(12, 18)
    6
    """
    while b:
        a, b = b, a % b
    return a


def gcd_v2(a: int, b: int) -> int:
    """Compute the greatest common divisor with Euclid's algorithm.

    >>> gcd_v2(48, 36)
    12
    """
    if b == 0:
        return a
    return gcd_v2(b, a % b)


def lcm(a: int, b: int) -> int:
    """Return the least common multiple of two numbers.

    >>> lcm(4, 6)
    12
    """
    return a * b // math.gcd(a, b)


def is_prime(n: int) -> bool:
    """Check whether a number is prime.

    >>> is_prime(7)
    True
    """
    if n < 2:
        return False
    for i in range(2, int(n**0.5) + 1):
        if n % i == 0:
            return False
    return True


def is_prime_v2(n: int) -> bool:
    """Return True if n is a prime number.

    >>> is_prime_v2(9)
    False
    """
    if n <= 1:
        return False
    if n <= 3:
        return True
    if n % 2 == 0 or n % 3 == 0:
        return False
    i = 5
    while i * i <= n:
        if n % i == 0 or n % (i + 2) == 0:
            return False
        i += 6
    return True


def is_prime_v3(n: int) -> bool:
    """Test whether a number is prime.

    >>> is_prime_v3(11)
    True
    """
    return n > 1 and all(n % i for i in range(2, math.isqrt(n) + 1))


def sieve(limit: int) -> list[int]:
    """Return all primes up to a limit with the sieve of Eratosthenes.

    >>> sieve(10)
    [2, 3, 5, 7]
    """
    is_prime = [True] * (limit + 1)
    is_prime[0:2] = [False, False]
    for i in range(2, int(limit**0.5) + 1):
        if is_prime[i]:
            for j in range(i * i, limit + 1, i):
                is_prime[j] = False
    return [i for i, prime in enumerate(is_prime) if prime]


def primes_below(n: int) -> list[int]:
    """Return a list of the primes below n.

    >>> primes_below(12)
    [2, 3, 5, 7, 11]
    """
    primes = []
    for x in range(2, n):
        if all(x % p for p in primes):
            primes.append(x)
    return primes


def prime_factors(n: int) -> list[int]:
    """Return the prime factors of a number.

    >>> prime_factors(60)
    [2, 2, 3, 5]
    """
    factors = []
    d = 2
    while d * d <= n:
        while n % d == 0:
            factors.append(d)
            n //= d
        d += 1
    if n > 1:
        factors.append(n)
    return factors


def next_prime(n: int) -> int:
    """Return the smallest prime greater than n.

    >>> next_prime(7)
    11
    """
    n += 1
    while any(n % i == 0 for i in range(2, int(n**0.5) + 1)):
        n += 1
    return n


def divisors(n: int) -> list[int]:
    """Return all divisors of a number.

    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    return [i for i in range(1, n + 1) if n % i == 0]


def is_perfect(n: int) -> bool:
    """Check whether a number equals the sum of its proper divisors.

    >>> is_perfect(28)
    True
    """
    return n > 1 and sum(i for i in range(1, n) if n % i == 0) == n


def is_perfect_square(n: int) -> bool:
    """Check whether a number is a perfect square.

    >>> is_perfect_square(16)
    True
    """
    root = math.isqrt(n)
    return root * root == n


def power(base: int, exponent: int) -> int:
    """Raise a base to an exponent by repeated squaring.

    >>> power(2, 10)
    1024
    """
    result = 1
    while exponent > 0:
        if exponent % 2 == 1:
            result *= base
        base *= base
        exponent //= 2
    return result


def power_v2(base: int, exponent: int) -> int:
    """Raise a base to a non-negative exponent by recursion.

    >>> power_v2(3, 4)
    81
    """
    if exponent == 0:
        return 1
    half = power_v2(base, exponent // 2)
    if exponent % 2 == 0:
        return half * half
    return half * half * base


def add(a: int, b: int) -> int:
    """Add two numbers.

    >>> add(2, 3)
    5
    """
    return a + b


def subtract(a: int, b: int) -> int:
    """Subtract one number from another.

    >>> subtract(5, 3)
    2
    """
    return a - b


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    >>> multiply(4, 3)
    12
    """
    return a * b


def divide(a: float, b: float) -> float:
    """Divide one number by another.

    >>> divide(6, 3)
    2.0
    """
    if b == 0:
        raise ZeroDivisionError("cannot divide by zero")
    return a / b


def safe_divide(a: float, b: float) -> float:
    """Divide two numbers, or return None if the divisor is zero.

    >>> safe_divide(1, 2)
    0.5
    """
    try:
        return a / b
    except ZeroDivisionError:
        return None


def is_even(n: int) -> bool:
    """Check whether a number is even.

    >>> is_even(4)
    True
    """
    return n % 2 == 0


def is_odd(n: int) -> bool:
    """Check whether a number is odd.

    >>> is_odd(4)
    False
    """
    return n % 2 == 1


def square(x: int) -> int:
    """Return the square of a number.

    >>> square(4)
    16
    """
    return x * x


def cube(x: int) -> int:
    """Return the cube of a number.

    >>> cube(3)
    27
    """
    return x**3


def absolute(x: int) -> int:
    """Return the absolute value of a number.

    >>> absolute(-3)
    3
    """
    return x if x >= 0 else -x


def sign(x: int) -> int:
    """Return the sign of a number: -1, 0 or 1.

    >>> sign(-5)
    -1
    """
    if x > 0:
        return 1
    if x < 0:
        return -1
    return 0


def clamp(value: float, low: float, high: float) -> float:
    """Limit a value to a range.

    >>> clamp(12, 0, 10)
    10
    """
    return max(low, min(value, high))


def sum_digits(n: int) -> int:
    """Return the sum of the digits of a number.

    >>> sum_digits(123)
    6
    """
    total = 0
    while n > 0:
        total += n % 10
        n //= 10
    return total


def sum_digits_v2(n: int) -> int:
    """Add up the digits of a number.

    >>> sum_digits_v2(99)
    18
    """
    return sum(int(digit) for digit in str(abs(n)))


def count_digits(n: int) -> int:
    """Count the digits of a number.

    >>> count_digits(1234)
    4
    """
    return len(str(abs(n)))


def reverse_number(n: int) -> int:
    """Reverse the digits of a number.

    >>> reverse_number(123)
    321
    """
    result = 0
    while n > 0:
        result = result * 10 + n % 10
        n //= 10
    return result


def is_armstrong(n: int) -> bool:
    """Check whether a number is an Armstrong number.

    >>> is_armstrong(153)
    True
    """
    digits = str(n)
    return sum(int(d) ** len(digits) for d in digits) == n


def collatz(n: int) -> list[int]:
    """Return the Collatz sequence of a number.

    >>> collatz(6)
    [6, 3, 10, 5, 16, 8, 4, 2, 1]
    """
    steps = [n]
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        steps.append(n)
    return steps


def square_root(x: float, tolerance: float = 1e-9) -> float:
    """Compute a square root with Newton's method.

    >>> round(square_root(2), 4)
    1.4142
    """
    if x < 0:
        raise ValueError("x must be non-negative")
    guess = x / 2 or 1.0
    while abs(guess * guess - x) > tolerance:
        guess = (guess + x / guess) / 2
    return guess


def is_power_of_two(n: int) -> bool:
    """Check whether a number is a power of two.

    >>> is_power_of_two(8)
    True
    """
    return n > 0 and n & (n - 1) == 0


def count_bits(n: int) -> int:
    """Count the bits that are set in a number.

    >>> count_bits(7)
    3
    """
    count = 0
    while n:
        count += n & 1
        n >>= 1
    return count


def to_binary(n: int) -> str:
    """Convert a number to a binary string.

    >>> to_binary(10)
    '1010'
    """
    if n == 0:
        return "0"
    digits = ""
    while n > 0:
        digits = str(n % 2) + digits
        n //= 2
    return digits


def from_binary(bits: str) -> int:
    """Convert a binary string to a number.

    >>> from_binary("1010")
    10
    """
    result = 0
    for bit in bits:
        result = result * 2 + int(bit)
    return result


def int_to_roman(n: int) -> str:
    """Convert a number to a Roman numeral.

    >>> int_to_roman(1994)
    'MCMXCIV'
    """
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    symbols = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    result = ""
    for value, symbol in zip(values, symbols):
        while n >= value:
            result += symbol
            n -= value
    return result


def roman_to_int(text: str) -> int:
    """Convert a Roman numeral to a number.

    >>> roman_to_int("XIV")
    14
    """
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    previous = 0
    for char in reversed(text):
        value = values[char]
        if value < previous:
            total -= value
        else:
            total += value
        previous = value
    return total


def fizzbuzz(n: int) -> list[str]:
    """Return the FizzBuzz sequence up to n.

    >>> fizzbuzz(5)
    ['1', '2', 'Fizz', '4', 'Buzz']
    """
    result = []
    for i in range(1, n + 1):
        if i % 15 == 0:
            result.append("FizzBuzz")
        elif i % 3 == 0:
            result.append("Fizz")
        elif i % 5 == 0:
            result.append("Buzz")
        else:
            result.append(str(i))
    return result


def fizzbuzz_v2(n: int) -> None:
    """Print the FizzBuzz sequence up to n."""
    for i in range(1, n + 1):
        if i % 3 == 0 and i % 5 == 0:
            print("FizzBuzz")
        elif i % 3 == 0:
            print("Fizz")
        elif i % 5 == 0:
            print("Buzz")
        else:
            print(i)


def is_leap_year(year: int) -> bool:
    """Check whether a year is a leap year.

    >>> is_leap_year(2024)
    True
    """
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_in_month(year: int, month: int) -> int:
    """Return the number of days in a month.

    >>> days_in_month(2023, 2)
    28
    """
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return 29 if leap else 28
    if month in (4, 6, 9, 11):
        return 30
    return 31


def celsius_to_fahrenheit(celsius: float) -> float:
    """Convert a temperature from Celsius to Fahrenheit.

    >>> celsius_to_fahrenheit(100)
    212.0
    """
    return celsius * 9 / 5 + 32


def fahrenheit_to_celsius(fahrenheit: float) -> float:
    """Convert a temperature from Fahrenheit to Celsius.

    >>> fahrenheit_to_celsius(212)
    100.0
    """
    return (fahrenheit - 32) * 5 / 9


def mean(values: list[float]) -> float:
    """Return the arithmetic mean of a list of numbers.

    >>> mean([1, 2, 3])
    2.0
    """
    if not values:
        raise ValueError("mean of an empty list")
    return sum(values) / len(values)


def median(values: list[float]) -> float:
    """Return the median of a list of numbers.

    >>> median([3, 1, 2])
    2
    """
    ordered = sorted(values)
    n = len(ordered)
    mid = n // 2
    if n % 2 == 1:
        return ordered[mid]
    return (ordered[mid - 1] + ordered[mid]) / 2


def mode(values: list) -> int:
    """Return the most common value of a list.

    >>> mode([1, 2, 2, 3])
    2
    """
    counts = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return max(counts, key=counts.get)


def variance(values: list[float]) -> float:
    """Return the variance of a list of numbers.

    >>> variance([1, 2, 3, 4])
    1.25
    """
    mean = sum(values) / len(values)
    return sum((x - mean) ** 2 for x in values) / len(values)


def standard_deviation(values: list[float]) -> float:
    """Return the standard deviation of a list of numbers.

    >>> standard_deviation([2, 4, 4, 4, 5, 5, 7, 9])
    2.0
    """
    mean = sum(values) / len(values)
    variance = sum((x - mean) ** 2 for x in values) / len(values)
    return math.sqrt(variance)


def normalize(values: list[float]) -> list[float]:
    """Scale numbers to the range from 0 to 1.

    >>> normalize([0, 5, 10])
    [0.0, 0.5, 1.0]
    """
    low, high = min(values), max(values)
    if low == high:
        return [0.0 for _ in values]
    return [(x - low) / (high - low) for x in values]


def area_of_circle(radius: float) -> float:
    """Return the area of a circle.

    >>> round(area_of_circle(1), 2)
    3.14
    """
    return math.pi * radius**2


def area_of_rectangle(width: float, height: float) -> float:
    """Return the area of a rectangle.

    >>> area_of_rectangle(3, 4)
    12
    """
    return width * height


def area_of_triangle(base: float, height: float) -> float:
    """Return the area of a triangle.

    >>> area_of_triangle(4, 3)
    6.0
    """
    return base * height / 2


def hypotenuse(a: float, b: float) -> float:
    """Return the length of the hypotenuse of a right triangle.

    >>> hypotenuse(3, 4)
    5.0
    """
    return math.sqrt(a * a + b * b)


def distance(x1: float, y1: float, x2: float, y2: float) -> float:
    """Return the distance between two points.

    >>> distance(0, 0, 3, 4)
    5.0
    """
    return math.sqrt((x2 - x1) ** 2 + (y2 - y1) ** 2)


def euclidean_distance(p: list[float], q: list[float]) -> float:
    """Return the Euclidean distance between two points.

    >>> euclidean_distance([0, 0], [3, 4])
    5.0
    """
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(p, q)))


def dot_product(a: list[float], b: list[float]) -> float:
    """Return the dot product of two vectors.

    >>> dot_product([1, 2], [3, 4])
    11
    """
    if len(a) != len(b):
        raise ValueError("vectors must have the same length")
    return sum(x * y for x, y in zip(a, b))


def compound_interest(principal: float, rate: float, years: int) -> float:
    """Return the value of an amount after some years of compound interest.

    >>> compound_interest(100, 0.1, 2)
    121.00000000000001
    """
    return principal * (1 + rate) ** years


def binomial(n: int, k: int) -> int:
    """Return the number of ways to choose k items from n.

    >>> binomial(5, 2)
    10
    """
    if k < 0 or k > n:
        return 0
    result = 1
    for i in range(min(k, n - k)):
        result = result * (n - i) // (i + 1)
    return result


def pascal_triangle(rows: int) -> list[list[int]]:
    """Return the first rows of Pascal's triangle.

    >>> pascal_triangle(3)
    [[1], [1, 1], [1, 2, 1]]
    """
    triangle = []
    for i in range(rows):
        row = [1] * (i + 1)
        for j in range(1, i):
            row[j] = triangle[i - 1][j - 1] + triangle[i - 1][j]
        triangle.append(row)
    return triangle


def matrix_multiply(a: list[list], b: list[list]) -> list[list]:
    """Multiply two matrices.

    >>> matrix_multiply([[1, 2]], [[3], [4]])
    [[11]]
    """
    rows, inner, columns = len(a), len(b), len(b[0])
    result = [[0] * columns for _ in range(rows)]
    for i in range(rows):
        for j in range(columns):
            for k in range(inner):
                result[i][j] += a[i][k] * b[k][j]
    return result


def transpose(matrix: list[list]) -> list[list]:
    """Transpose a matrix.

    >>> transpose([[1, 2], [3, 4]])
    [[1, 3], [2, 4]]
    """
    return [list(row) for row in zip(*matrix)]


def transpose_v2(matrix: list[list]) -> list[list]:
    """Swap the rows and columns of a matrix.

    >>> transpose_v2([[1, 2, 3]])
    [[1], [2], [3]]
    """
    rows, columns = len(matrix), len(matrix[0])
    return [[matrix[i][j] for i in range(rows)] for j in range(columns)]


def identity_matrix(n: int) -> list[list[int]]:
    """Return the identity matrix of size n.

    >>> identity_matrix(2)
    [[1, 0], [0, 1]]
    """
    return [[1 if i == j else 0 for j in range(n)] for i in range(n)]


def trace(matrix: list[list]) -> int:
    """Return the sum of the diagonal of a square matrix.

    >>> trace([[1, 2], [3, 4]])
    5
    """
    return sum(matrix[i][i] for i in range(len(matrix)))


def print_multiplication_table(n: int) -> None:
    """Print a multiplication table."""
    for i in range(1, n + 1):
        row = [str(i * j) for j in range(1, n + 1)]
        print("\t".join(row))


def sum_of_squares(n: int) -> int:
    """Return the sum of the squares of the first n numbers.

    >>> sum_of_squares(3)
    14
    """
    return sum(i * i for i in range(1, n + 1))


def sum_up_to(n: int) -> int:
    """Return the sum of the numbers from 1 to n.

    >>> sum_up_to(4)
    10
    """
    total = 0
    for i in range(1, n + 1):
        total += i
    return total


def solve_quadratic(a: float, b: float, c: float) -> tuple:
    """Return the real roots of a quadratic equation.

    >>> solve_quadratic(1, -3, 2)
    (1.0, 2.0)
    """
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return ()
    root = math.sqrt(discriminant)
    return ((-b - root) / (2 * a), (-b + root) / (2 * a))


ALIASES = {
    "factorial": ("factorial", "factorial", "fact"),
    "fibonacci": ("fibonacci", "fibonacci", "fib", "fibo"),
    "gcd": ("gcd", "gcd", "greatest_common_divisor"),
    "lcm": ("lcm", "least_common_multiple"),
    "is_prime": ("is_prime", "is_prime", "isprime", "check_prime"),
    "sieve": ("sieve", "sieve_of_eratosthenes", "primes_up_to", "get_primes", "primes"),
    "prime_factors": ("prime_factors", "factorize", "prime_factorization"),
    "power": ("power", "pow", "fast_power", "exponentiate"),
    "mean": ("mean", "average", "avg", "calculate_average", "compute_mean"),
    "variance": ("variance", "calculate_variance"),
    "standard_deviation": ("standard_deviation", "stdev", "std"),
    "clamp": ("clamp", "limit", "clip"),
    "to_binary": ("to_binary", "decimal_to_binary", "int_to_binary"),
    "from_binary": ("from_binary", "binary_to_decimal", "binary_to_int"),
    "sum_digits": ("sum_digits", "sum_of_digits", "digit_sum"),
    "matrix_multiply": ("matrix_multiply", "matmul", "multiply_matrices"),
    "binomial": ("binomial", "n_choose_k", "combinations", "choose"),
    "square_root": ("square_root", "sqrt", "newton_sqrt"),
    "count_bits": ("count_bits", "popcount", "hamming_weight"),
}
