"""Lists, dictionaries, graphs, dynamic programming, decorators."""
# The plain textbook way to write each of these is the point, not the shortest.
# mypy: ignore-errors
# ruff: noqa: B905, C420, RET503, RUF005

import collections
import functools
import heapq
import itertools
import time


def flatten(nested: list) -> list:
    """Flatten a nested list.

    >>> flatten([1, [2, [3, 4]]])
    [1, 2, 3, 4]
    """
    result = []
    for item in nested:
        if isinstance(item, list):
            result.extend(flatten(item))
        else:
            result.append(item)
    return result


def flatten_v2(nested: list[list]) -> list:
    """Flatten a list of lists.

    >>> flatten_v2([[1], [2, 3]])
    [1, 2, 3]
    """
    return [item for items in nested for item in items]


def chunk(items: list, size: int) -> list[list]:
    """Split a list into chunks of a given size.

    >>> chunk([1, 2, 3], 2)
    [[1, 2], [3]]
    """
    return [items[i : i + size] for i in range(0, len(items), size)]


def chunk_v2(items: list, size: int):
    """Yield successive chunks of a list.

    >>> list(chunk_v2([1, 2, 3], 2))
    [[1, 2], [3]]
    """
    for i in range(0, len(items), size):
        yield items[i : i + size]


def remove_duplicates(items: list) -> list:
    """Remove duplicates from a list and keep the order.

    >>> remove_duplicates([1, 2, 1, 3])
    [1, 2, 3]
    """
    seen = set()
    result = []
    for item in items:
        if item not in seen:
            seen.add(item)
            result.append(item)
    return result


def remove_duplicates_v2(items: list) -> list:
    """Return the unique items of a list.

    >>> remove_duplicates_v2([2, 2, 1])
    [2, 1]
    """
    return list(dict.fromkeys(items))


def find_duplicates(items: list) -> list:
    """Return the items that occur more than once.

    >>> find_duplicates([1, 2, 1])
    [1]
    """
    counts = collections.Counter(items)
    return [item for item, count in counts.items() if count > 1]


def has_duplicates(items: list) -> bool:
    """Check whether a list has any item twice.

    >>> has_duplicates([1, 2, 1])
    True
    """
    return len(items) != len(set(items))


def rotate(items: list, k: int) -> list:
    """Rotate a list to the right by k steps.

    >>> rotate([1, 2, 3], 1)
    [3, 1, 2]
    """
    if not items:
        return items
    k %= len(items)
    return items[-k:] + items[:-k]


def reverse_list(items: list) -> list:
    """Reverse a list in place.

    >>> reverse_list([1, 2, 3])
    [3, 2, 1]
    """
    left, right = 0, len(items) - 1
    while left < right:
        items[left], items[right] = items[right], items[left]
        left += 1
        right -= 1
    return items


def find_max(numbers: list[int]) -> int:
    """Return the largest number in a list.

    >>> find_max([3, 9, 4])
    9
    """
    largest = numbers[0]
    for number in numbers[1:]:
        if number > largest:
            largest = number
    return largest


def find_min(numbers: list[int]) -> int:
    """Return the smallest number in a list.

    >>> find_min([3, 9, 4])
    3
    """
    smallest = numbers[0]
    for number in numbers:
        if number < smallest:
            smallest = number
    return smallest


def second_largest(numbers: list[int]) -> int:
    """Return the second largest number in a list.

    >>> second_largest([3, 9, 4])
    4
    """
    first = second = float("-inf")
    for number in numbers:
        if number > first:
            first, second = number, first
        elif first > number > second:
            second = number
    return second


def sum_list(numbers: list[int]) -> int:
    """Return the sum of a list of numbers.

    >>> sum_list([1, 2, 3])
    6
    """
    total = 0
    for number in numbers:
        total += number
    return total


def product(numbers: list[int]) -> int:
    """Return the product of a list of numbers.

    >>> product([2, 3, 4])
    24
    """
    result = 1
    for number in numbers:
        result *= number
    return result


def filter_even(numbers: list[int]) -> list[int]:
    """Return the even numbers of a list.

    >>> filter_even([1, 2, 3, 4])
    [2, 4]
    """
    return [number for number in numbers if number % 2 == 0]


def square_all(numbers: list[int]) -> list[int]:
    """Return a list with the square of each number.

    >>> square_all([1, 2, 3])
    [1, 4, 9]
    """
    return [number**2 for number in numbers]


def two_sum(nums: list[int], target: int) -> list[int]:
    """Return the indices of two numbers that add up to a target.

    >>> two_sum([2, 7, 11, 15], 9)
    [0, 1]
    """
    seen = {}
    for i, num in enumerate(nums):
        if target - num in seen:
            return [seen[target - num], i]
        seen[num] = i
    return []


def three_sum(nums: list[int]) -> list[tuple]:
    """Return all triples of numbers that add up to zero.

    >>> three_sum([-1, 0, 1, 2])
    [(-1, 0, 1)]
    """
    nums = sorted(nums)
    result = set()
    for i in range(len(nums) - 2):
        left, right = i + 1, len(nums) - 1
        while left < right:
            total = nums[i] + nums[left] + nums[right]
            if total == 0:
                result.add((nums[i], nums[left], nums[right]))
                left += 1
                right -= 1
            elif total < 0:
                left += 1
            else:
                right -= 1
    return sorted(result)


def intersection(a: list, b: list) -> list:
    """Return the items that two lists share.

    >>> intersection([1, 2, 3], [2, 3, 4])
    [2, 3]
    """
    return [item for item in a if item in set(b)]


def difference(a: list, b: list) -> list:
    """Return the items of the first list that are not in the second.

    >>> difference([1, 2, 3], [2])
    [1, 3]
    """
    return [item for item in a if item not in b]


def group_by(items: list, key) -> dict:
    """Group items by the result of a function.

    >>> group_by(["a", "bb", "cc"], len)
    {1: ['a'], 2: ['bb', 'cc']}
    """
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def split_by(items: list, predicate) -> tuple[list, list]:
    """Split a list into the items that satisfy a predicate and the others.

    >>> split_by([1, 2, 3], lambda x: x > 1)
    ([2, 3], [1])
    """
    yes, no = [], []
    for item in items:
        if predicate(item):
            yes.append(item)
        else:
            no.append(item)
    return yes, no


def count_occurrences(items: list, value: int) -> int:
    """Count how often a value occurs in a list.

    >>> count_occurrences([1, 2, 1], 1)
    2
    """
    return sum(1 for item in items if item == value)


def most_common(items: list) -> int:
    """Return the most common item of a list.

    >>> most_common([1, 2, 2])
    2
    """
    return collections.Counter(items).most_common(1)[0][0]


def running_sum(numbers: list[int]) -> list[int]:
    """Return the running sum of a list.

    >>> running_sum([1, 2, 3])
    [1, 3, 6]
    """
    total = 0
    result = []
    for number in numbers:
        total += number
        result.append(total)
    return result


def moving_average(values: list[float], window: int) -> list[float]:
    """Return the moving average of a list of numbers.

    >>> moving_average([1, 2, 3, 4], 2)
    [1.5, 2.5, 3.5]
    """
    result = []
    for i in range(len(values) - window + 1):
        result.append(sum(values[i : i + window]) / window)
    return result


def max_subarray(nums: list[int]) -> int:
    """Return the largest sum of a contiguous subarray.

    >>> max_subarray([-2, 1, -3, 4, -1, 2, 1])
    6
    """
    best = current = nums[0]
    for num in nums[1:]:
        current = max(num, current + num)
        best = max(best, current)
    return best


def max_profit(prices: list[int]) -> int:
    """Return the best profit from buying and selling once.

    >>> max_profit([7, 1, 5, 3, 6])
    5
    """
    lowest = float("inf")
    profit = 0
    for price in prices:
        lowest = min(lowest, price)
        profit = max(profit, price - lowest)
    return profit


def move_zeros(nums: list[int]) -> list[int]:
    """Move all zeros to the end of a list.

    >>> move_zeros([0, 1, 0, 2])
    [1, 2, 0, 0]
    """
    position = 0
    for i in range(len(nums)):
        if nums[i] != 0:
            nums[position], nums[i] = nums[i], nums[position]
            position += 1
    return nums


def missing_number(nums: list[int]) -> int:
    """Find the number from 0 to n that is missing in a list.

    >>> missing_number([0, 1, 3])
    2
    """
    n = len(nums)
    return n * (n + 1) // 2 - sum(nums)


def majority_element(nums: list[int]) -> int:
    """Return the item that occurs more than half of the time.

    >>> majority_element([1, 2, 1])
    1
    """
    count = 0
    candidate = None
    for num in nums:
        if count == 0:
            candidate = num
        count += 1 if num == candidate else -1
    return candidate


def product_except_self(nums: list[int]) -> list[int]:
    """Return the product of all other items for each item of a list.

    >>> product_except_self([1, 2, 3])
    [6, 3, 2]
    """
    result = [1] * len(nums)
    left = 1
    for i in range(len(nums)):
        result[i] = left
        left *= nums[i]
    right = 1
    for i in range(len(nums) - 1, -1, -1):
        result[i] *= right
        right *= nums[i]
    return result


def merge_intervals(intervals: list[list[int]]) -> list[list[int]]:
    """Merge the intervals that overlap.

    >>> merge_intervals([[1, 3], [2, 6], [8, 9]])
    [[1, 6], [8, 9]]
    """
    result = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1][1] = max(result[-1][1], end)
        else:
            result.append([start, end])
    return result


def permutations(items: list) -> list[list]:
    """Return all permutations of a list.

    >>> permutations([1, 2])
    [[1, 2], [2, 1]]
    """
    if len(items) <= 1:
        return [items]
    result = []
    for i, item in enumerate(items):
        rest = items[:i] + items[i + 1 :]
        for permutation in permutations(rest):
            result.append([item] + permutation)
    return result


def subsets(items: list) -> list[list]:
    """Return all subsets of a list.

    >>> subsets([1, 2])
    [[], [1], [2], [1, 2]]
    """
    result = [[]]
    for item in items:
        result += [subset + [item] for subset in result]
    return result


def powerset(items: list) -> list[tuple]:
    """Return the power set of a list.

    >>> powerset([1, 2])
    [(), (1,), (2,), (1, 2)]
    """
    sizes = range(len(items) + 1)
    return list(itertools.chain.from_iterable(itertools.combinations(items, k) for k in sizes))


def invert_dict(data: dict) -> dict:
    """Swap the keys and values of a dictionary.

    >>> invert_dict({"a": 1})
    {1: 'a'}
    """
    return {value: key for key, value in data.items()}


def merge_dicts(a: dict, b: dict) -> dict:
    """Merge two dictionaries.

    >>> merge_dicts({"a": 1}, {"b": 2})
    {'a': 1, 'b': 2}
    """
    result = dict(a)
    result.update(b)
    return result


def get_nested(data: dict, path: str, default=None):
    """Look up a dotted path in a nested dictionary.

    >>> get_nested({"a": {"b": 1}}, "a.b")
    1
    """
    for key in path.split("."):
        if not isinstance(data, dict) or key not in data:
            return default
        data = data[key]
    return data


def climb_stairs(n: int) -> int:
    """Count the ways to climb n stairs in steps of one or two.

    >>> climb_stairs(4)
    5
    """
    a, b = 1, 1
    for _ in range(n - 1):
        a, b = b, a + b
    return b


def coin_change(coins: list[int], amount: int) -> int:
    """Return the fewest coins that make up an amount, or -1.

    >>> coin_change([1, 2, 5], 11)
    3
    """
    dp = [0] + [float("inf")] * amount
    for i in range(1, amount + 1):
        for coin in coins:
            if coin <= i:
                dp[i] = min(dp[i], dp[i - coin] + 1)
    return dp[amount] if dp[amount] != float("inf") else -1


def knapsack(weights: list[int], values: list[int], capacity: int) -> int:
    """Return the best value that fits in a knapsack.

    >>> knapsack([1, 3, 4], [15, 20, 30], 4)
    35
    """
    dp = [0] * (capacity + 1)
    for weight, value in zip(weights, values):
        for c in range(capacity, weight - 1, -1):
            dp[c] = max(dp[c], dp[c - weight] + value)
    return dp[capacity]


def longest_increasing_subsequence(nums: list[int]) -> int:
    """Return the length of the longest increasing subsequence.

    >>> longest_increasing_subsequence([10, 9, 2, 5, 3, 7])
    3
    """
    if not nums:
        return 0
    dp = [1] * len(nums)
    for i in range(len(nums)):
        for j in range(i):
            if nums[j] < nums[i]:
                dp[i] = max(dp[i], dp[j] + 1)
    return max(dp)


def unique_paths(rows: int, columns: int) -> int:
    """Count the paths from one corner of a grid to the other.

    >>> unique_paths(3, 3)
    6
    """
    dp = [1] * columns
    for _ in range(1, rows):
        for j in range(1, columns):
            dp[j] += dp[j - 1]
    return dp[-1]


def hanoi(n: int, source: str, target: str, spare: str) -> None:
    """Print the moves that solve the towers of Hanoi."""
    if n == 0:
        return
    hanoi(n - 1, source, spare, target)
    print(f"Move disk {n} from {source} to {target}")
    hanoi(n - 1, spare, target, source)


def bfs(graph: dict, start: str) -> list:
    """Visit the nodes of a graph in breadth-first order.

    >>> bfs({"a": ["b", "c"], "b": [], "c": []}, "a")
    ['a', 'b', 'c']
    """
    visited = {start}
    queue = collections.deque([start])
    order = []
    while queue:
        node = queue.popleft()
        order.append(node)
        for neighbor in graph[node]:
            if neighbor not in visited:
                visited.add(neighbor)
                queue.append(neighbor)
    return order


def dfs(graph: dict, start: str, visited: set | None = None) -> set:
    """Visit the nodes of a graph in depth-first order.

    >>> sorted(dfs({"a": ["b"], "b": []}, "a"))
    ['a', 'b']
    """
    if visited is None:
        visited = set()
    visited.add(start)
    for neighbor in graph[start]:
        if neighbor not in visited:
            dfs(graph, neighbor, visited)
    return visited


def dfs_v2(graph: dict, start: str) -> list:
    """Visit the nodes of a graph depth first, with a stack.

    >>> dfs_v2({"a": ["b", "c"], "b": [], "c": []}, "a")
    ['a', 'c', 'b']
    """
    visited = []
    stack = [start]
    while stack:
        node = stack.pop()
        if node not in visited:
            visited.append(node)
            stack.extend(graph[node])
    return visited


def dijkstra(graph: dict, start: str) -> dict:
    """Return the shortest distance from a node to every other node.

    >>> dijkstra({"a": {"b": 1}, "b": {}}, "a")
    {'a': 0, 'b': 1}
    """
    distances = {node: float("inf") for node in graph}
    distances[start] = 0
    queue = [(0, start)]
    while queue:
        distance, node = heapq.heappop(queue)
        if distance > distances[node]:
            continue
        for neighbor, weight in graph[node].items():
            new_distance = distance + weight
            if new_distance < distances[neighbor]:
                distances[neighbor] = new_distance
                heapq.heappush(queue, (new_distance, neighbor))
    return distances


def shortest_path(graph: dict, start: str, end: str) -> list:
    """Return a shortest path between two nodes of a graph, or None.

    >>> shortest_path({"a": ["b"], "b": ["c"], "c": []}, "a", "c")
    ['a', 'b', 'c']
    """
    queue = collections.deque([[start]])
    visited = {start}
    while queue:
        path = queue.popleft()
        if path[-1] == end:
            return path
        for neighbor in graph[path[-1]]:
            if neighbor not in visited:
                visited.add(neighbor)
                queue.append(path + [neighbor])
    return None


def topological_sort(graph: dict) -> list:
    """Return the nodes of a directed graph in topological order.

    >>> topological_sort({"a": ["b"], "b": []})
    ['a', 'b']
    """
    degrees = {node: 0 for node in graph}
    for node in graph:
        for neighbor in graph[node]:
            degrees[neighbor] += 1
    queue = collections.deque(node for node in graph if degrees[node] == 0)
    order = []
    while queue:
        node = queue.popleft()
        order.append(node)
        for neighbor in graph[node]:
            degrees[neighbor] -= 1
            if degrees[neighbor] == 0:
                queue.append(neighbor)
    return order


def has_cycle(graph: dict) -> bool:
    """Check whether a directed graph has a cycle.

    >>> has_cycle({"a": ["b"], "b": ["a"]})
    True
    """
    visited = set()
    active = set()

    def visit(node):
        if node in active:
            return True
        if node in visited:
            return False
        visited.add(node)
        active.add(node)
        found = any(visit(neighbor) for neighbor in graph[node])
        active.remove(node)
        return found

    return any(visit(node) for node in graph)


def count_islands(grid: list[list[int]]) -> int:
    """Count the groups of connected ones in a grid.

    >>> count_islands([[1, 0], [0, 1]])
    2
    """
    if not grid:
        return 0
    rows, columns = len(grid), len(grid[0])

    def sink(i, j):
        if 0 <= i < rows and 0 <= j < columns and grid[i][j] == 1:
            grid[i][j] = 0
            sink(i + 1, j)
            sink(i - 1, j)
            sink(i, j + 1)
            sink(i, j - 1)

    count = 0
    for i in range(rows):
        for j in range(columns):
            if grid[i][j] == 1:
                sink(i, j)
                count += 1
    return count


def spiral_order(matrix: list[list[int]]) -> list[int]:
    """Return the items of a matrix in spiral order.

    >>> spiral_order([[1, 2], [4, 3]])
    [1, 2, 3, 4]
    """
    result = []
    while matrix:
        result += matrix.pop(0)
        matrix = [list(row) for row in zip(*matrix)][::-1]
    return result


def count_up_to(n: int):
    """Count from 1 to n.

    >>> list(count_up_to(3))
    [1, 2, 3]
    """
    i = 1
    while i <= n:
        yield i
        i += 1


def timer(func):
    """Print how long a function takes."""

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        result = func(*args, **kwargs)
        elapsed = time.perf_counter() - start
        print(f"{func.__name__} took {elapsed:.3f} seconds")
        return result

    return wrapper


def memoize(func):
    """Remember the results of a function."""
    cache = {}

    @functools.wraps(func)
    def wrapper(*args):
        if args not in cache:
            cache[args] = func(*args)
        return cache[args]

    return wrapper


def log_calls(func):
    """Print each call of a function."""

    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        print(f"calling {func.__name__} with {args} and {kwargs}")
        return func(*args, **kwargs)

    return wrapper


def retry(func, attempts: int = 3, delay: float = 1.0):
    """Call a function again until it succeeds."""
    for attempt in range(attempts):
        try:
            return func()
        except Exception:
            if attempt == attempts - 1:
                raise
            time.sleep(delay)


def compose(f, g):
    """Return the composition of two functions.

    >>> compose(abs, min)([-3, 2])
    3
    """
    return lambda x: f(g(x))


ALIASES = {
    "flatten": ("flatten", "flatten", "flatten_list"),
    "chunk": ("chunk", "chunks", "split_list", "batched", "chunked"),
    "remove_duplicates": ("remove_duplicates", "unique", "dedupe", "deduplicate"),
    "rotate": ("rotate", "rotate_list", "rotate_array"),
    "find_max": ("find_max", "maximum", "max_value", "find_largest", "get_max"),
    "find_min": ("find_min", "minimum", "min_value", "find_smallest", "get_min"),
    "sum_list": ("sum_list", "sum_numbers", "sum_all", "add_all"),
    "filter_even": ("filter_even", "get_even_numbers", "even_numbers", "evens"),
    "square_all": ("square_all", "square_numbers", "squares"),
    "max_subarray": ("max_subarray", "max_subarray_sum", "kadane"),
    "bfs": ("bfs", "breadth_first_search"),
    "dfs": ("dfs", "depth_first_search"),
    "dijkstra": ("dijkstra", "dijkstra", "shortest_distances"),
    "shortest_path": ("shortest_path", "find_path"),
    "topological_sort": ("topological_sort", "topo_sort"),
    "hanoi": ("hanoi", "tower_of_hanoi", "solve_hanoi"),
    "permutations": ("permutations", "permute"),
    "merge_dicts": ("merge_dicts", "merge_dictionaries"),
    "timer": ("timer", "timed", "measure_time"),
    "memoize": ("memoize", "cache", "memo"),
    "running_sum": ("running_sum", "cumulative_sum", "prefix_sums", "cumsum"),
    "difference": ("difference", "list_difference"),
    "intersection": ("intersection", "common_elements", "common_items"),
    "product": ("product", "multiply_all", "multiply_list"),
}
