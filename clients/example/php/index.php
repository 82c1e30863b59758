<?php
session_start();
switch ($_GET['do'] ?? '') {
    case 'add':
        $_SESSION['basket'][] = $_POST['item'] . ' (PHP)';
        break;
    case 'login': // check the password first
        Cloakroom\login($_POST['name']);
        break;
    case 'logout':
        session_destroy();
        break;
    default:
        $items = array_map(fn ($item) => '<li>' . htmlspecialchars($item) . '</li>', $_SESSION['basket'] ?? []);
        exit(strtr(file_get_contents(__DIR__ . '/../page.html'), [
            'LANGUAGE' => 'PHP',
            'USER' => htmlspecialchars(Cloakroom\principal() ?? 'nobody'),
            'ITEMS' => implode($items),
        ]));
}
header('Location: /php/', true, 303);
